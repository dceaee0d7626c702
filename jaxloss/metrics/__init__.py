"""What is reported of a fit: scores of whole arrays, and statistics of residuals that merge over any split."""

from jaxloss.metrics.residual_stats import ResidualStats as ResidualStats
from jaxloss.metrics.scores import bias as bias
from jaxloss.metrics.scores import d2 as d2
from jaxloss.metrics.scores import explained_variance as explained_variance
from jaxloss.metrics.scores import max_error as max_error
from jaxloss.metrics.scores import median_absolute_error as median_absolute_error
from jaxloss.metrics.scores import pearson as pearson
from jaxloss.metrics.scores import r2 as r2
from jaxloss.metrics.scores import rmse as rmse
