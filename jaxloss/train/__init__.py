"""Training: the step, whole fits in one compiled program, and the doors to flax models."""

from jaxloss.train.batch import Batch as Batch
from jaxloss.train.callbacks import Every as Every
from jaxloss.train.callbacks import ProgressLine as ProgressLine
from jaxloss.train.checkpoint import CheckpointError as CheckpointError
from jaxloss.train.checkpoint import Checkpoints as Checkpoints
from jaxloss.train.evaluation import average_params as average_params
from jaxloss.train.fitting import FitResult as FitResult
from jaxloss.train.fitting import NonFiniteError as NonFiniteError
from jaxloss.train.fitting import fit as fit
from jaxloss.train.interrupt import Interruption as Interruption
from jaxloss.train.many import FitManyResult as FitManyResult
from jaxloss.train.many import fit_many as fit_many
from jaxloss.train.mesh import Sharding as Sharding
from jaxloss.train.modules import functional as functional
from jaxloss.train.objective import penalized as penalized
from jaxloss.train.objective import supervised as supervised
from jaxloss.train.per_example import gradient_norms as gradient_norms
from jaxloss.train.per_example import per_example_grads as per_example_grads
from jaxloss.train.resume import Interrupted as Interrupted
from jaxloss.train.resume import RunDir as RunDir
from jaxloss.train.serving import SavedModel as SavedModel
from jaxloss.train.serving import load_model as load_model
from jaxloss.train.serving import save_model as save_model
from jaxloss.train.sources import Stream as Stream
from jaxloss.train.state import TrainState as TrainState
from jaxloss.train.step import make_step as make_step
