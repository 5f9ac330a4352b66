"""All that a plugin, a front end or a test may need of the kernel: the contract on one page.

The life of a run: transport.resolve and fetch -> store.ingest -> snapshotter.prepare, unpack, commit -> snapshotter.prepare
-> network.reserve -> shim.create_sandbox -> isolation.create (state created) -> network.attach -> isolation.start -> exited
-> network.detach, isolation.delete, shim.remove_sandbox, snapshotter.remove.

Rules for every method of every driver:

- Synchronous, called from any thread of the engine, so drivers are thread-safe; no asyncio at module level.
- Data in, data out: frozen attrs classes, str, bytes, int. With ``process = true`` a driver lives in a process of its own
  behind the same Protocol: fds and streams with fileno() travel by SCM_RIGHTS, all else as JSON (bytes as base64).
- Undo methods (abort, delete, remove, remove_sandbox, forget, untag, detach, unmount) succeed when the thing is gone already;
  every other method raises NotFound.
- Raise the errors below or OSError; anything else counts as a fault of the plugin.
- A call that passes its deadline is abandoned: the caller gets DeadlineExceeded naming the plugin, the thread is counted as
  lost, and that driver answers Unavailable until its breaker closes. Long loops call ``context.checkpoint()``.
"""

from __future__ import annotations

from wherry.errors import (
    AlreadyExists,
    CommandNotExecutable,
    CommandNotFound,
    DeadlineExceeded,
    Denied,
    Error,
    FailedPrecondition,
    InUse,
    Invalid,
    NotFound,
    PluginFault,
    Unavailable,
    suggest,
)
from wherry.hookspecs import Hooks, hookimpl, hookspec
from wherry.interfaces.common import Capabilities, Descriptor, Digest, Event, Family, IdMap, Kind, Labels, Mount
from wherry.interfaces.config import Config, EngineConfig, Info, Origin, PluginInfo, Process, Variant
from wherry.interfaces.container import Container, ContainerProcess
from wherry.interfaces.contributions import (
    Connection,
    Frontend,
    LogDriver,
    LogLine,
    NamedImage,
    Transport,
    Volume,
    VolumeDriver,
)
from wherry.interfaces.engine import (
    Bind,
    Engine,
    ExecRequest,
    Finding,
    GcReport,
    ImageInfo,
    NetworkInfo,
    Progress,
    RunRequest,
    Span,
    watching,
)
from wherry.interfaces.images import ArchiveFormat, ContainerUse, DiskUsage, ImageUse, LayerFile, LayerUse, VolumeUse
from wherry.interfaces.isolation import Checkpointer, CreateRequest, Isolation
from wherry.interfaces.kernel import API, Context, Registration, Workers
from wherry.interfaces.network import (
    Attachment,
    AttachRequest,
    EndpointConfig,
    Network,
    NetworkConfig,
    Port,
    PublishingNetwork,
    Reservation,
)
from wherry.interfaces.process import Exit, LogSink, Plan, Sandbox, Shim, ShimControl, Stdio, Step, TaskState
from wherry.interfaces.snapshotter import ApartLayer, LayerSnapshotter, SnapshotInfo, SnapshotOptions, Snapshotter
from wherry.interfaces.store import BlobInfo, Image, Ingest, Store
from wherry.interfaces.tracing import span, trace_events

__all__ = [
    "API",
    "AlreadyExists",
    "ApartLayer",
    "ArchiveFormat",
    "AttachRequest",
    "Attachment",
    "Bind",
    "BlobInfo",
    "Capabilities",
    "Checkpointer",
    "CommandNotExecutable",
    "CommandNotFound",
    "Config",
    "Connection",
    "Container",
    "ContainerProcess",
    "ContainerUse",
    "Context",
    "CreateRequest",
    "DeadlineExceeded",
    "Denied",
    "Descriptor",
    "Digest",
    "DiskUsage",
    "EndpointConfig",
    "Engine",
    "EngineConfig",
    "Error",
    "Event",
    "ExecRequest",
    "Exit",
    "FailedPrecondition",
    "Family",
    "Finding",
    "Frontend",
    "GcReport",
    "Hooks",
    "IdMap",
    "Image",
    "ImageInfo",
    "ImageUse",
    "InUse",
    "Info",
    "Ingest",
    "Invalid",
    "Isolation",
    "Kind",
    "Labels",
    "LayerFile",
    "LayerSnapshotter",
    "LayerUse",
    "LogDriver",
    "LogLine",
    "LogSink",
    "Mount",
    "NamedImage",
    "Network",
    "NetworkConfig",
    "NetworkInfo",
    "NotFound",
    "Origin",
    "Plan",
    "PluginFault",
    "PluginInfo",
    "Port",
    "Process",
    "Progress",
    "PublishingNetwork",
    "Registration",
    "Reservation",
    "RunRequest",
    "Sandbox",
    "Shim",
    "ShimControl",
    "SnapshotInfo",
    "SnapshotOptions",
    "Snapshotter",
    "Span",
    "Stdio",
    "Step",
    "Store",
    "TaskState",
    "Transport",
    "Unavailable",
    "Variant",
    "Volume",
    "VolumeDriver",
    "VolumeUse",
    "Workers",
    "hookimpl",
    "hookspec",
    "span",
    "suggest",
    "trace_events",
    "watching",
]
