"""What the residuals of a fit say about its loss: verdicts in words, the figures behind them, and what to try next."""

from jaxloss.diagnostics.balance import Balance as Balance
from jaxloss.diagnostics.diagnosis import Diagnosis as Diagnosis
from jaxloss.diagnostics.diagnosis import Output as Output
from jaxloss.diagnostics.diagnosis import diagnose as diagnose
from jaxloss.diagnostics.verdicts import Verdict as Verdict
