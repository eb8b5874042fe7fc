"""Federated learning: one job description, from a simulation on a laptop to a federation of organisations.

This is the face. A name is imported when it is first asked for, so `import hansa` costs NumPy at most, and whoever asks
for a part whose library is not installed (torch, grpc, …) gets `errors.MissingExtra`, which says what to install.

    clients = hansa.data.partition(...)                      or hansa.Clients.of: who holds what
    job = hansa.Job(model=..., algorithm=..., pipeline=...)  everything that changes the mathematics
    history = hansa.train(job, clients)                      in this process; hansa.Processes() uses all cores
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# The whole public face: where each name lives. The imports for type checkers below say the same; a test compares them.
_NAMES: dict[str, tuple[str, ...]] = {
    "core.tensors": ("Tensors",),
    "core.data": ("Dataset", "Clients"),
    "core.model": ("Model", "LocalWork", "RecordDP", "Role", "Fit"),
    "core.algorithm": ("Algorithm", "Update", "Aggregate"),
    "core.pipeline": ("Pipeline", "Signal", "Stage", "Step", "Reducer"),
    "core.sampling": ("Sampling", "Fixed", "Poisson"),
    "privacy.sampling": ("Turns",),
    "core.job": ("Job", "Evaluation"),
    "core.checkpoint": ("Checkpoint",),
    "core.ledger": ("Event", "Ledger"),
    "stages.mean": ("WeightedMean", "UniformMean"),
    "stages.measure": ("Measure",),
    "stages.clip": ("Clip",),
    "stages.adaptive_clip": ("AdaptiveClip",),
    "stages.quantise": ("Quantise",),
    "stages.topk": ("TopK",),
    "stages.rotate": ("Rotate",),
    "stages.mask": ("RandomMask",),
    "stages.lowrank": ("LowRank",),
    "stages.powersgd": ("PowerSGD",),
    "stages.eden": ("Eden",),
    "stages.dither": ("Dither",),
    "stages.sign": ("Sign", "MajorityVote"),
    "stages.ternary": ("Ternary",),
    "stages.pack": ("Pack",),
    "stages.zeroing": ("Zeroing",),
    "stages.noise": ("Gaussian",),
    "stages.laplace": ("Laplace",),
    "stages.local_noise": ("LocalGaussian", "LocalLaplace"),
    "stages.privunit": ("PrivUnit",),
    "stages.distributed_noise": ("DistributedGaussian", "DistributedSkellam"),
    "stages.correlated_noise": ("MatrixNoise", "TreeNoise"),
    "stages.sum": ("Sum",),
    "stages.secure_sum": ("SecureSum",),
    "stages.mpc_sum": ("MpcSum",),
    "stages.he_sum": ("HeSum",),
    "stages.median": ("Median",),
    "stages.trimmed_mean": ("TrimmedMean",),
    "stages.krum": ("Krum", "MultiKrum"),
    "stages.bulyan": ("Bulyan",),
    "stages.geometric_median": ("GeometricMedian",),
    "stages.centre": ("Centre",),
    "stages.centred_clipping": ("CentredClipping",),
    "stages.norm_bound": ("NormBound",),
    "stages.fltrust": ("FLTrust", "Rooted"),
    "algorithms.fedavg": ("FedAvg",),
    "algorithms.fedsgd": ("FedSGD",),
    "algorithms.fedprox": ("FedProx",),
    "algorithms.fedopt": ("FedAdagrad", "FedAdam", "FedYogi", "FedAvgM"),
    "algorithms.scaffold": ("Scaffold",),
    "algorithms.fedbuff": ("FedBuff",),
    "algorithms.fednova": ("FedNova",),
    "algorithms.qfedavg": ("QFedAvg",),
    "algorithms.trees.settings": ("Boosting",),
    "algorithms.trees.horizontal": ("TreeModel", "TreeBagging", "HistogramModel", "TreeHistograms"),
    "algorithms.trees.id3": ("DecisionTree", "Id3", "Id3Model"),
    "algorithms.trees.network": ("ClientTrees", "OwnTrees", "TreeGathering", "TreeNetwork"),
    "adapters.numpy": ("LinearModel", "LogisticModel", "MLPModel"),
    "adapters.torch": ("TorchModel",),
    "adapters.torch_trees": ("TreeConvolution",),
    "adapters.jax": ("JaxModel",),
    "adapters.keras": ("KerasModel",),
    "adapters.sklearn": ("SklearnModel",),
    "runtimes.history": ("History",),
    "runtimes.local": ("Local", "train"),
    "runtimes.processes": ("Processes",),
    "runtimes.ray": ("Ray",),
    "runtimes.virtual.device": ("Device",),
    "runtimes.virtual.fleet": ("Fleet",),
    "runtimes.virtual.runtime": ("Virtual",),
}
_MODULES: dict[str, str] = {
    "errors": "core.errors",
    "data": "data",
    "privacy": "privacy",
    "observe": "runtimes.observe",
    "measures": "adapters.measures",
    "tasks": "app.tasks",
    "mpc": "mpc",
}
_HOMES: dict[str, str] = {name: module for module, names in _NAMES.items() for name in names}

__all__ = [*_HOMES, *_MODULES, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        value: Any = import_module(f"hansa.{_MODULES[name]}")
    elif name in _HOMES:
        value = getattr(import_module(f"hansa.{_HOMES[name]}"), name)
    else:
        raise AttributeError(f"module 'hansa' has no attribute '{name}': dir(hansa) lists what it has.")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if TYPE_CHECKING:
    from hansa import data as data, mpc as mpc, privacy as privacy
    from hansa.adapters import measures as measures
    from hansa.adapters.jax import JaxModel as JaxModel
    from hansa.adapters.keras import KerasModel as KerasModel
    from hansa.adapters.numpy import LinearModel as LinearModel, LogisticModel as LogisticModel, MLPModel as MLPModel
    from hansa.adapters.sklearn import SklearnModel as SklearnModel
    from hansa.adapters.torch import TorchModel as TorchModel
    from hansa.adapters.torch_trees import TreeConvolution as TreeConvolution
    from hansa.algorithms.fedavg import FedAvg as FedAvg
    from hansa.algorithms.fedbuff import FedBuff as FedBuff
    from hansa.algorithms.fednova import FedNova as FedNova
    from hansa.algorithms.fedopt import (
        FedAdagrad as FedAdagrad,
        FedAdam as FedAdam,
        FedAvgM as FedAvgM,
        FedYogi as FedYogi,
    )
    from hansa.algorithms.fedprox import FedProx as FedProx
    from hansa.algorithms.fedsgd import FedSGD as FedSGD
    from hansa.algorithms.qfedavg import QFedAvg as QFedAvg
    from hansa.algorithms.scaffold import Scaffold as Scaffold
    from hansa.algorithms.trees.horizontal import (
        HistogramModel as HistogramModel,
        TreeBagging as TreeBagging,
        TreeHistograms as TreeHistograms,
        TreeModel as TreeModel,
    )
    from hansa.algorithms.trees.id3 import DecisionTree as DecisionTree, Id3 as Id3, Id3Model as Id3Model
    from hansa.algorithms.trees.network import (
        ClientTrees as ClientTrees,
        OwnTrees as OwnTrees,
        TreeGathering as TreeGathering,
        TreeNetwork as TreeNetwork,
    )
    from hansa.algorithms.trees.settings import Boosting as Boosting
    from hansa.app import tasks as tasks
    from hansa.core import errors as errors
    from hansa.core.algorithm import Aggregate as Aggregate, Algorithm as Algorithm, Update as Update
    from hansa.core.checkpoint import Checkpoint as Checkpoint
    from hansa.core.data import Clients as Clients, Dataset as Dataset
    from hansa.core.job import Evaluation as Evaluation, Job as Job
    from hansa.core.ledger import Event as Event, Ledger as Ledger
    from hansa.core.model import (
        Fit as Fit,
        LocalWork as LocalWork,
        Model as Model,
        RecordDP as RecordDP,
        Role as Role,
    )
    from hansa.core.pipeline import (
        Pipeline as Pipeline,
        Reducer as Reducer,
        Signal as Signal,
        Stage as Stage,
        Step as Step,
    )
    from hansa.core.sampling import Fixed as Fixed, Poisson as Poisson, Sampling as Sampling
    from hansa.core.tensors import Tensors as Tensors
    from hansa.privacy.sampling import Turns as Turns
    from hansa.runtimes import observe as observe
    from hansa.runtimes.history import History as History
    from hansa.runtimes.local import Local as Local, train as train
    from hansa.runtimes.processes import Processes as Processes
    from hansa.runtimes.ray import Ray as Ray
    from hansa.runtimes.virtual.device import Device as Device
    from hansa.runtimes.virtual.fleet import Fleet as Fleet
    from hansa.runtimes.virtual.runtime import Virtual as Virtual
    from hansa.stages.adaptive_clip import AdaptiveClip as AdaptiveClip
    from hansa.stages.bulyan import Bulyan as Bulyan
    from hansa.stages.centre import Centre as Centre
    from hansa.stages.centred_clipping import CentredClipping as CentredClipping
    from hansa.stages.clip import Clip as Clip
    from hansa.stages.correlated_noise import MatrixNoise as MatrixNoise, TreeNoise as TreeNoise
    from hansa.stages.distributed_noise import (
        DistributedGaussian as DistributedGaussian,
        DistributedSkellam as DistributedSkellam,
    )
    from hansa.stages.dither import Dither as Dither
    from hansa.stages.eden import Eden as Eden
    from hansa.stages.fltrust import FLTrust as FLTrust, Rooted as Rooted
    from hansa.stages.geometric_median import GeometricMedian as GeometricMedian
    from hansa.stages.he_sum import HeSum as HeSum
    from hansa.stages.krum import Krum as Krum, MultiKrum as MultiKrum
    from hansa.stages.laplace import Laplace as Laplace
    from hansa.stages.local_noise import LocalGaussian as LocalGaussian, LocalLaplace as LocalLaplace
    from hansa.stages.lowrank import LowRank as LowRank
    from hansa.stages.mask import RandomMask as RandomMask
    from hansa.stages.mean import UniformMean as UniformMean, WeightedMean as WeightedMean
    from hansa.stages.measure import Measure as Measure
    from hansa.stages.median import Median as Median
    from hansa.stages.mpc_sum import MpcSum as MpcSum
    from hansa.stages.noise import Gaussian as Gaussian
    from hansa.stages.norm_bound import NormBound as NormBound
    from hansa.stages.pack import Pack as Pack
    from hansa.stages.powersgd import PowerSGD as PowerSGD
    from hansa.stages.privunit import PrivUnit as PrivUnit
    from hansa.stages.quantise import Quantise as Quantise
    from hansa.stages.rotate import Rotate as Rotate
    from hansa.stages.secure_sum import SecureSum as SecureSum
    from hansa.stages.sign import MajorityVote as MajorityVote, Sign as Sign
    from hansa.stages.sum import Sum as Sum
    from hansa.stages.ternary import Ternary as Ternary
    from hansa.stages.topk import TopK as TopK
    from hansa.stages.trimmed_mean import TrimmedMean as TrimmedMean
    from hansa.stages.zeroing import Zeroing as Zeroing
