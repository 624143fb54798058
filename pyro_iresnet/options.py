"""Options of a block: one typed record that every builder takes, stores and writes as JSON."""

import inspect
import json
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, TypedDict

from torch import nn

from ._strategy_json import decode, encode, given
from .activations import Activation, LipSwish
from .activations.base import check_activation
from .blocks import Block, CayleyBlock, ResidualBlock
from .contractions import ConvContraction, DenseContraction
from .coordinates import Coordinates, DiagonalScale
from .errors import (
    ArgumentError,
    ArgumentTypeError,
    IResNetError,
    check_dims,
    check_instance,
    check_keywords,
    check_lipschitz,
)
from .inverse import Solver
from .logdet import LogDet
from .norms import Cholesky, Norm

BLOCKS: dict[str, Callable[..., Block]] = {"residual": ResidualBlock, "cayley": CayleyBlock}
# Options by the names that builders give them.
ALIASES = {"hidden_features": "hidden_dims", "hidden_channels": "hidden_dims"}


class BlockKeywords(TypedDict, total=False):
    """The keywords of a builder: the fields of :class:`BlockOptions`, and records to start from."""

    options: "BlockOptions | Sequence[BlockOptions]"
    block: str | Callable[..., Block]
    lipschitz: float
    activation: Callable[[], Activation] | None
    norm: Norm
    coordinates: Coordinates | Sequence[Coordinates] | None
    logdet: LogDet | None
    solver: Solver | None


@dataclass(frozen=True, kw_only=True, eq=False)
class BlockOptions:
    """The options of one block with a fully connected or a convolutional ``g``.

    The record rebuilds a block: save the JSON of :meth:`to_json` beside the state dict. The state
    dict itself holds the settings that change the function, in a form that only compares: loading
    into a block of other settings raises.

    Arguments:
        block: ``"residual"``, ``"cayley"``, or a callable that makes a :class:`Block` of a
            contraction, such as a subclass of ``Block``.
        hidden_dims: the widths of the hidden layers; by default as in :class:`DenseContraction`.
        lipschitz: the bound of ``Lip(g)``, in (0, 1). Near 1 a block bends more, and its inverse
            takes more steps.
        activation: an :class:`Activation` class, or a callable that makes an activation; by default
            ``auto_activation(D)``, and :class:`LipSwish` in a guide and in :meth:`build` of an
            image; the builders of ``images`` and ``sbi`` state their own.
        norm: the strategy that keeps the norm of a weight at its bound.
        coordinates: the coordinates in which ``g`` contracts: a strategy, a sequence of strategies
            that act in turn, or None for those of ``x``.
        logdet: the estimator of the log-determinant; by default ``auto_logdet(D)``.
        solver: the solver of the inverse with its tolerance; by default :class:`Anderson`.

    Raises:
        ArgumentError, ArgumentTypeError: an option out of range or of the wrong type.

    Example:
        >>> from pyro_iresnet import iresnet
        >>> from pyro_iresnet.options import BlockOptions
        >>> options = BlockOptions(block="cayley", lipschitz=0.9)
        >>> transform = iresnet(2, options=options)
        >>> transform.options == options == BlockOptions.from_json(options.to_json())
        True
    """

    block: str | Callable[..., Block] = "residual"
    hidden_dims: Sequence[int] | None = None
    lipschitz: float = 0.97
    activation: Callable[[], Activation] | None = None
    norm: Norm = Cholesky()  # noqa: RUF009  (frozen, so safe to share)
    coordinates: Coordinates | Sequence[Coordinates] | None = DiagonalScale()  # noqa: RUF009
    logdet: LogDet | None = None
    solver: Solver | None = None

    def __post_init__(self) -> None:
        if self.hidden_dims is not None:
            widths = check_dims(self.hidden_dims, "hidden_dims")
            object.__setattr__(self, "hidden_dims", widths)
        object.__setattr__(self, "lipschitz", check_lipschitz(self.lipschitz))
        if isinstance(self.coordinates, list):
            object.__setattr__(self, "coordinates", tuple(self.coordinates))
        if isinstance(self.block, str) and self.block not in BLOCKS:
            raise ArgumentError(
                f"Expected block to be one of {', '.join(map(repr, BLOCKS))}, or a callable that "
                f"makes a block; got {self.block!r}."
            )
        if not isinstance(self.block, str) and not callable(self.block):
            raise ArgumentTypeError(
                "Expected block to be 'residual', 'cayley' or a callable that makes a block of a "
                f"contraction, such as CayleyBlock; got {self.block!r}."
            )
        if isinstance(self.block, nn.Module):
            raise ArgumentTypeError(
                "Expected block to be a callable that makes a block, such as CayleyBlock; got a "
                f"{type(self.block).__name__}, which is made already. Pass its class."
            )
        for name in getattr(self.block, "keywords", {}):
            if name in ("logdet", "solver", "coordinates"):
                raise ArgumentError(
                    f"Expected {name} as an option beside block, as BlockOptions({name}=...); got "
                    "it inside the partial, where the option would override it."
                )
        if self.activation is not None:
            check_activation(self.activation)
        check_instance(self.norm, Norm, "norm", "Gram()")
        if isinstance(self.coordinates, tuple):
            for i, one in enumerate(self.coordinates):
                check_instance(one, Coordinates, f"coordinates[{i}]", "DiagonalScale()")
        elif self.coordinates is not None:
            example = "DiagonalScale(), (Asinh(), DiagonalScale()) or None"
            check_instance(self.coordinates, Coordinates, "coordinates", example)
        for name, kind in (("logdet", LogDet), ("solver", Solver)):
            value = getattr(self, name)
            if value is not None:
                check_instance(value, kind, name, "Exact()" if kind is LogDet else "Anderson()")

    @classmethod
    def of(
        cls, keywords: Any, builder: Callable[..., object] | None = None, **own: Any
    ) -> "BlockOptions":
        """Make the record of a builder's keywords.

        ``own`` are options that the builder has as arguments, by the builder's names; None for the
        default. A keyword that is neither an option nor an argument of ``builder`` raises
        :class:`ArgumentTypeError`, which suggests a near one.
        """
        keywords = dict(keywords)
        base = keywords.pop("options", None)
        if base is not None:
            check_instance(base, BlockOptions, "options", "BlockOptions(lipschitz=0.9)")
        known = [f.name for f in fields(cls)]
        if not keywords.keys() <= set(known):
            of = BlockOptions if builder is None else builder
            listed = dict.fromkeys([*inspect.signature(of).parameters, *known, "options"])
            check_keywords(keywords, listed, of.__name__)
        for argument, value in own.items():
            name = ALIASES.get(argument, argument)
            if value is not None:
                if name in keywords:
                    raise ArgumentError(
                        f"Expected {argument} without {name}, another name of the same option; got "
                        f"both. Leave out {name}."
                    )
                keywords[name] = value
        return cls(**keywords) if base is None else replace(base, **keywords)

    @classmethod
    def records(
        cls, keywords: Any, builder: Callable[..., object] | None = None, **own: Any
    ) -> "tuple[BlockOptions, ...]":
        """Make the records that blocks take in turn; ``options`` may be one or a sequence."""
        base = keywords.get("options")
        if not isinstance(base, list | tuple):
            return (cls.of(keywords, builder, **own),)
        if not base:
            raise ArgumentError(
                "Expected options to be one record or a sequence of some; got none."
            )
        return tuple([cls.of({**keywords, "options": one}, builder, **own) for one in base])

    def build(self, dim: int | Sequence[int], context_dim: int | None = None) -> Block:
        """Make a block for vectors or images, under a context of size ``context_dim`` or None.

        ``dim`` is the number of coordinates of a vector, or channels, height and width of an image.
        """
        common: Any = {
            "context_dim": context_dim,
            "lipschitz": self.lipschitz,
            "activation": self.activation,
            "norm": self.norm,
        }
        if isinstance(dim, Sequence):
            common["activation"] = LipSwish if self.activation is None else self.activation
            contraction = ConvContraction(dim, self.hidden_dims, **common)
        else:
            contraction = DenseContraction(dim, self.hidden_dims, **common)
        make = BLOCKS[self.block] if isinstance(self.block, str) else self.block
        block = make(
            contraction, logdet=self.logdet, solver=self.solver, coordinates=self.coordinates
        )
        check_instance(block, Block, "the result of block", "CayleyBlock(contraction)")
        block.options = self
        return block

    def to_json(self) -> str:
        """Write JSON, or raise :class:`ArgumentError` if JSON cannot name an option (a lambda)."""
        return json.dumps({f.name: encode(getattr(self, f.name), f.name) for f in fields(self)})

    @classmethod
    def from_json(cls, text: str) -> "BlockOptions":
        """Read the record that :meth:`to_json` wrote.

        Classes of your own are found by name, so import them first. Raises :class:`ArgumentError`
        for no such record, or a class that is not known.
        """
        try:
            values = json.loads(text)
            return cls.of({name: decode(value, name) for name, value in values.items()})
        except IResNetError:
            raise
        except (ValueError, TypeError, AttributeError) as error:
            raise ArgumentError(
                f"Expected the JSON of BlockOptions; got {str(text)[:80]!r}: {error}."
            ) from error

    def _key(self) -> tuple[object, ...]:
        # Python compares partials by identity.
        values = [getattr(self, f.name) for f in fields(self)]
        return tuple([(v.func, _hashable(v)) if isinstance(v, partial) else v for v in values])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BlockOptions) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        shown = [f"{f.name}={_shown(getattr(self, f.name))}" for f in fields(self)]
        return f"BlockOptions({', '.join(shown)})"

    # A frozen record needs no copy, and a copy by pickle would lose a lambda.
    def __copy__(self) -> "BlockOptions":
        return self

    def __deepcopy__(self, memo: object) -> "BlockOptions":
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        try:
            pickle.dumps(values)
        except (pickle.PicklingError, AttributeError, TypeError):
            # A lambda does not pickle, and the block that holds the record should.
            return _nothing, ()
        return _restored, (values,)


def _hashable(value: partial[Any]) -> tuple[tuple[str, object], ...]:
    """Return the arguments of a partial by name, lists as tuples."""
    pairs = given(value).items()
    return tuple([(name, tuple(a) if isinstance(a, list) else a) for name, a in pairs])


def _nothing() -> None:
    """Return None, the options of a block whose record did not pickle."""


def _restored(values: dict[str, Any]) -> BlockOptions:
    return BlockOptions(**values)


def _shown(value: object) -> str:
    if isinstance(value, partial):
        settings = [f"{name}={v!r}" for name, v in given(value).items()]
        return f"partial({', '.join([_shown(value.func), *settings])})"
    return value.__name__ if isinstance(value, type) else repr(value)
