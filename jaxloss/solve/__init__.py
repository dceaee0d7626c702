"""Solvers: the same losses minimised to machine precision, where a model is linear or has few parameters."""

from jaxloss.solve.linear import solve_linear as solve_linear
from jaxloss.solve.linear_fit import LinearFit as LinearFit
from jaxloss.solve.nonlinear import NonlinearFit as NonlinearFit
from jaxloss.solve.nonlinear import levenberg_marquardt as levenberg_marquardt
