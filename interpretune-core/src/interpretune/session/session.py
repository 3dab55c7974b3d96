"""A session: one stack of adapters around one module and one data module."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from types import new_class
from typing import Any, Self

from interpretune.config.checked import CheckedConfig, check_argument
from interpretune.config.datamodule import ITDataModuleConfig
from interpretune.config.latents import LatentRequest
from interpretune.config.module import ITConfig
from interpretune.config.shared import ITSharedConfig
from interpretune.errors import ConfigurationError
from interpretune.plugins.stack import ExecutionContext, build_context
from interpretune.session.composition import add_latents, apply_shared, compose_datamodule_cfg, compose_module_cfg
from interpretune.session.datamodule import ITDataModule
from interpretune.session.module import ITModule
from interpretune.session.optimization import as_optimizer_setup, check_optimizers
from interpretune.session.step_routing import route_steps


@dataclass(kw_only=True)
class ITSessionConfig(CheckedConfig, checks_types=True):
    """What a session is made of.

    Attributes:
        adapter_ctx: Adapters to stack, in any order, by name or as objects; what they require is added.
        datamodule_cls: The data module's class.
        module_cls: The module's class.
        shared_cfg: Settings that both share.
        datamodule_cfg: The data module's configuration.
        module_cfg: The module's configuration.
        latents: Latent models to load or to train, whichever adapter supplies them; None: those of ``module_cfg``.
    """

    adapter_ctx: str | Sequence[Any] = ("core",)
    datamodule_cls: type = ITDataModule
    module_cls: type = ITModule
    shared_cfg: ITSharedConfig | None = None
    datamodule_cfg: ITDataModuleConfig = field(default_factory=ITDataModuleConfig)
    module_cfg: ITConfig = field(default_factory=ITConfig)
    latents: LatentRequest | None = None


class ITSession(Mapping[str, Any]):
    """Composes the classes of a session, builds the module with its model and latent models, and the data module.

    ``with ITSession(cfg) as session:`` initialises it and ends it, whatever happens in the block.

    It is a mapping: ``it_init(**session)`` receives ``module`` and ``datamodule``. Under a framework adapter that
    renames the module, ``trainer.test(**session)`` receives what it expects.

    Attributes:
        context: The stack; ``print(session.context)`` shows it.
        module: The composed module.
        datamodule: The composed data module.
    """

    def __init__(self, session_cfg: ITSessionConfig) -> None:
        """Build a session.

        Args:
            session_cfg: What it is made of; the configurations in it are not changed.

        Raises:
            InterpretuneError: A subclass that says what is wrong: see ``build_context`` for adapters, ``add_latents``
                and ``compose_module_cfg`` for configurations, ``load_hf_model`` for models.
        """
        check_argument("The configuration of ITSession", session_cfg, ITSessionConfig)
        self.session_cfg = session_cfg
        self.context: ExecutionContext = build_context(session_cfg.adapter_ctx)
        shared = session_cfg.shared_cfg
        wanted_cfg = add_latents(session_cfg.module_cfg, session_cfg.latents, self.context)
        module_cfg = apply_shared(compose_module_cfg(wanted_cfg, self.context), shared)
        datamodule_cfg = apply_shared(
            compose_datamodule_cfg(session_cfg.datamodule_cfg, self.context, session_cfg.module_cfg.auto_comp_cfg),
            shared,
        )
        self.datamodule: ITDataModule = compose_class(session_cfg.datamodule_cls, "datamodule", self.context)(
            itdm_cfg=datamodule_cfg
        )
        self.module: ITModule = compose_class(session_cfg.module_cls, "module", self.context)(it_cfg=module_cfg)
        self.datamodule.module = self.module
        self.module._it_state.session_cfg = session_cfg

    def __enter__(self) -> Self:
        """Initialise the session (``it_init``), unless that was done."""
        if not self.module.initialised:
            it_init(**self)
        return self

    def __exit__(self, *_: object) -> None:
        """End the session (``it_session_end``), unless the block did; an error of the block is raised as it is."""
        if self.module.initialised:
            it_session_end(**self)

    @property
    def _keys(self) -> dict[str, Any]:
        renamed = [item.module_key for item in self.context.contributions if item.module_key]
        return {"datamodule": self.datamodule, (renamed or ["module"])[-1]: self.module}

    def __getitem__(self, key: str) -> Any:
        return self._keys[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    def _repr_html_(self) -> str:
        return f"<p>{escape(repr(self))}</p>\n{self.context._repr_html_()}"

    def __repr__(self) -> str:
        parts = f"{type(self.module).__name__}, {type(self.datamodule).__name__}"
        return f"ITSession({', '.join(self.context.names)}: {parts})"


def compose_class(user_class: type, kind: str, context: ExecutionContext) -> Any:
    """A class of the user's, which is unchanged, between the stack's entries and bases (``ConfigurationError``)."""
    own_bases = user_class.__mro__[:-1] if isinstance(user_class, type) else ()
    wanted, other = (ITModule, ITDataModule) if kind == "module" else (ITDataModule, ITModule)
    if not own_bases or other in own_bases or any(base.__module__ == "builtins" for base in own_bases):
        raise ConfigurationError(
            f"{kind}_cls is {user_class!r}. Give a class that derives from {wanted.__name__}, not an object: the "
            "session makes it."
        )
    behind = [base for _, base in context.bases(kind)]
    entries = [base for _, base in context.bases(f"{kind}_entry")]
    own = [] if user_class in behind else [user_class]
    body: dict[str, Any] = {"context": context, "__module__": user_class.__module__, "__doc__": user_class.__doc__}
    if kind == "module":
        steps = route_steps(user_class, behind)
        body |= {"routed_steps": frozenset(steps), **steps}
    bases = [*entries, *own, *behind]
    try:
        return new_class(user_class.__name__, tuple(bases), exec_body=lambda namespace: namespace.update(body))
    except TypeError as error:
        raise ConfigurationError(
            f"{user_class.__qualname__} cannot be composed with "
            f"{', '.join(base.__qualname__ for base in (*entries, *behind))}: {error}. Let the {kind} class derive "
            "from torch.nn.Module or its interpretune base only."
        ) from error


def it_init(
    module: ITModule | None = None, datamodule: ITDataModule | None = None, *, model: ITModule | None = None
) -> None:
    """Initialise a session: prepare data, set up the data module, set up the module, build optimizers.

    Call it as ``it_init(**session)``. If a phase fails, the session is ended (``it_end_session``) and the error is
    raised.

    Args:
        module: The session's module.
        datamodule: The session's data module.
        model: The module, under framework adapters that call it so.
    """
    owner = module if module is not None else model
    if owner is None or datamodule is None:
        raise ConfigurationError("it_init needs a module and a data module: call it as it_init(**session).")
    hook = owner.hook
    try:
        hook.it_prepare_data(datamodule=datamodule, module=owner)
        hook.it_setup_datamodule(datamodule=datamodule, module=owner)
        hook.it_setup_module(module=owner, datamodule=datamodule)
        owner._it_state.optimizers = as_optimizer_setup(owner.configure_optimizers())
        if owner._it_state.optimizers is not None:
            check_optimizers(owner, owner._it_state.optimizers.optimizers)
        owner._it_state.initialised = True
    except BaseException:
        hook.it_end_session(module=owner, datamodule=datamodule)
        raise


def it_session_end(
    module: ITModule | None = None, datamodule: ITDataModule | None = None, *, model: ITModule | None = None
) -> None:
    """End a session: every adapter releases what it holds. Call it as ``it_session_end(**session)``."""
    owner = module if module is not None else model
    if owner is None or datamodule is None:
        raise ConfigurationError("it_session_end needs a module and a data module: call it_session_end(**session).")
    owner.hook.it_end_session(module=owner, datamodule=datamodule)
