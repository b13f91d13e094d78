"""Training that repeats and resumes, and what it leaves behind."""

from tfmemloc.training.history import TrainingHistory
from tfmemloc.training.live import write_live_page
from tfmemloc.training.loop import TrainingDivergedError, train
from tfmemloc.training.optimizer import LearningRate, make_optimizer, make_rate
from tfmemloc.training.record_examples import RecordExamples
from tfmemloc.training.record_run import RecordRun
from tfmemloc.training.recorder import ExampleRecorder
from tfmemloc.training.recording import Recording, recorded_epochs
from tfmemloc.training.step import make_train_step
