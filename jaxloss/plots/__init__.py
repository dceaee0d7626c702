"""Pictures of residuals, of calibration and of losses. Needs matplotlib; loaded only by `from jaxloss import plots`.

Every function draws into `axes`, or into a new `Figure` if none is given, and returns the Axes; `residual_panel`
returns a Figure. Nothing goes through pyplot: no global state, no window, nothing to close. Keep a picture by
`axes.figure.savefig("residuals.png")`.

Arguments are those of a loss: pred and target of one shape, weights and where a scalar or of the target's rank, all
entries pooled. What is masked, or of weight 0, is absent. An entry that is not finite is not drawn, and counted in a
note on the figure; so are points left out because there are many, or because they lie beyond the axis. Curves and
shares are always those of all entries. Over nothing the axes are empty and say so.
"""

try:
    import matplotlib as _matplotlib  # noqa: F401
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError(
        "jaxloss.plots needs matplotlib: pip install 'jaxloss[experiments]'", name=missing.name
    ) from None

from jaxloss.plots.calibration import intervals as intervals
from jaxloss.plots.calibration import pit_histogram as pit_histogram
from jaxloss.plots.calibration import reliability as reliability
from jaxloss.plots.curves import loss_curves as loss_curves
from jaxloss.plots.panel import residual_panel as residual_panel
from jaxloss.plots.residuals import actual_against_predicted as actual_against_predicted
from jaxloss.plots.residuals import residual_histogram as residual_histogram
from jaxloss.plots.residuals import residual_qq as residual_qq
from jaxloss.plots.residuals import residuals_against_prediction as residuals_against_prediction
from jaxloss.plots.residuals import squared_error_share as squared_error_share
