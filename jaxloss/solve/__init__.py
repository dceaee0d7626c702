"""Solvers: the same losses minimised to machine precision, where a model is small enough for its whole Jacobian."""

from jaxloss.solve.nonlinear import NonlinearFit as NonlinearFit
from jaxloss.solve.nonlinear import levenberg_marquardt as levenberg_marquardt
