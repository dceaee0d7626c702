"""Regression losses for JAX: written for one prediction, lifted to every shape, derivative and device."""

from jaxloss import losses as losses
from jaxloss import metrics as metrics
from jaxloss import scaling as scaling
from jaxloss.composite import composite as composite
from jaxloss.contract import ShapeError as ShapeError
from jaxloss.lift import Loss as Loss
from jaxloss.lift import Traits as Traits
from jaxloss.lift import curvature as curvature
from jaxloss.lift import irls_weight as irls_weight
from jaxloss.lift import pointwise as pointwise
from jaxloss.lift import slope as slope
from jaxloss.lift import traits as traits
from jaxloss.likelihood.continuous import Normal as Normal
from jaxloss.likelihood.scores import crps as crps
from jaxloss.likelihood.scores import nll as nll
from jaxloss.losses.barron import barron as barron
from jaxloss.losses.barron import barron_nll as barron_nll
from jaxloss.losses.deviance import gamma_deviance as gamma_deviance
from jaxloss.losses.deviance import poisson_deviance as poisson_deviance
from jaxloss.losses.deviance import tweedie_deviance as tweedie_deviance
from jaxloss.losses.quantile import expectile as expectile
from jaxloss.losses.quantile import quantile as quantile
from jaxloss.losses.quantile import quantile_huber as quantile_huber
from jaxloss.losses.relative import mape as mape
from jaxloss.losses.relative import msle as msle
from jaxloss.losses.relative import smape as smape
from jaxloss.losses.residual import epsilon_insensitive as epsilon_insensitive
from jaxloss.losses.residual import huber as huber
from jaxloss.losses.residual import log_cosh as log_cosh
from jaxloss.losses.residual import mae as mae
from jaxloss.losses.residual import mse as mse
from jaxloss.losses.residual import pseudo_huber as pseudo_huber
from jaxloss.losses.residual import smooth_l1 as smooth_l1
from jaxloss.losses.residual import squared_epsilon_insensitive as squared_epsilon_insensitive
from jaxloss.losses.robust import cauchy as cauchy
from jaxloss.losses.robust import fair as fair
from jaxloss.losses.robust import geman_mcclure as geman_mcclure
from jaxloss.losses.robust import tukey as tukey
from jaxloss.losses.robust import welsch as welsch
from jaxloss.metrics import rmse as rmse
from jaxloss.reduce import LossSum as LossSum
from jaxloss.reduce import loss_sum as loss_sum
from jaxloss.reduce import observed as observed
from jaxloss.scaling import Standardizer as Standardizer

__version__ = "0.1.0"
