"""The manifest of a published version: where it comes from, what it cost in privacy, what its files are.

A manifest is immutable and travels as canonical JSON (sorted keys, no spaces, UTF-8), so that equal manifests
are equal bytes. It holds the bounds of the cohort and never a count of survivors: the claim of ε under secret
sampling would not survive it. Numbers that are not counts (ε, δ, metrics) are strings, because canonical JSON
as The Update Framework uses it has no floating point.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Annotated, Literal

import pydantic
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_serializer,
    model_serializer,
)

from quorate.artifacts.names import NAME_PATTERN
from quorate.errors import DataError
from quorate.parameters import Layout

__all__ = [
    "FORMAT",
    "Cohort",
    "ExamplePrivacy",
    "Manifest",
    "ParametersFile",
    "Privacy",
    "ProgramFile",
    "TensorSpec",
]

FORMAT = 1
"""The format that this release writes and reads."""


def _number(text: str) -> str:
    float(text)  # raises ValueError, which pydantic reports with the field's name
    return text


def _utc(text: str) -> str:
    if datetime.fromisoformat(text).utcoffset() != timedelta(0):
        raise ValueError("a time in UTC is needed, such as 2026-11-20T14:00:00Z")
    return text


def _product_fits(shape: tuple[int, ...]) -> tuple[int, ...]:
    if math.prod(max(dimension, 1) for dimension in shape) > 2**40:
        raise ValueError("the shape has more than 2^40 values")
    return shape


Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Number = Annotated[str, AfterValidator(_number)]
Time = Annotated[str, AfterValidator(_utc)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class TensorSpec(_Frozen):
    """One input or output of a program.

    Args:
        name: the tensor's name, as clients write it.
        dtype: NumPy's name of the element type, such as `float32`.
        shape: one dimension each; -1 stands for any, and the first is the batch.
    """

    name: str = Field(min_length=1)
    dtype: Literal["float32", "float64", "int32", "int64", "uint8", "bool"]
    shape: Annotated[tuple[Annotated[int, Field(ge=-1)], ...], AfterValidator(_product_fits)]


class ParametersFile(_Frozen):
    """The parameters of a version, a safetensors file of float32 tensors.

    Args:
        layout: names and shapes, in the order of the flat vector (safetensors keeps none).
        sha256: of the file, in lower-case hexadecimal.
        length: of the file, in bytes.
    """

    layout: tuple[
        tuple[str, Annotated[tuple[Annotated[int, Field(ge=0)], ...], AfterValidator(_product_fits)]], ...
    ]
    sha256: Sha256
    length: int = Field(ge=0)

    def as_layout(self) -> Layout:
        """The layout as the rest of Quorate uses it.

        Raises:
            DataError: a name is empty or given twice.
        """
        return Layout(self.layout)


class ProgramFile(_Frozen):
    """The program of a version, an ONNX model whose initialisers are the parameters, by name.

    Args:
        sha256: of the file, in lower-case hexadecimal.
        length: of the file, in bytes.
        inputs: what it takes.
        outputs: what it gives.
    """

    sha256: Sha256
    length: int = Field(ge=0)
    inputs: tuple[TensorSpec, ...] = Field(min_length=1)
    outputs: tuple[TensorSpec, ...] = Field(min_length=1)


class Cohort(_Frozen):
    """The bounds that noise and thresholds were calibrated to.

    Args:
        largest: the most members a cohort could have.
        min_survivors: the fewest survivors whose sum was released.
    """

    largest: int = Field(ge=1)
    min_survivors: int = Field(ge=1)


class ExamplePrivacy(_Frozen):
    """What the version cost one example of one client, where clients train by DP-SGD: against everybody else.

    Args:
        neighbours: the neighbouring relation, in words.
        epsilon: for the client that took part most often.
        delta: of it.
    """

    neighbours: str = Field(min_length=1)
    epsilon: Number
    delta: Number


class Privacy(_Frozen):
    """What the version cost in privacy when it was published, and who must be trusted for that to hold.

    Args:
        mechanism: the mechanism's name, or `none`.
        neighbours: the neighbouring relation, in words, such as `add or remove one client`.
        epsilon_released: ε towards whoever sees only what is released; None when nothing is claimed.
        epsilon_server: ε towards the server, which knows the cohorts; None when nothing is claimed.
        delta: the δ of both.
        simulated: the run was seeded: its noise can be repeated by whoever knows the seed, and protects
            nobody.
        summation: how updates were summed and against whom that protects, such as `secagg+, semi-honest`.
        withdrawal: what the version keeps of a member that withdraws, in words; versions of before do not say it.
        examples: what it cost single examples; None when nothing is claimed for those.
        ledger: SHA-256 of the last row of the run's ledger when it was published, in lower-case hexadecimal: a ledger
            that is shown later must have that row (`quorate privacy verify --manifest`). None when nothing is claimed;
            versions of before do not say it. What is None of these three is left out of the file.
    """

    mechanism: str = Field(min_length=1)
    neighbours: str | None = None
    epsilon_released: Number | None = None
    epsilon_server: Number | None = None
    delta: Number | None = None
    simulated: bool
    summation: str = Field(min_length=1)
    withdrawal: str | None = None
    examples: ExamplePrivacy | None = None
    ledger: Sha256 | None = None

    @model_serializer(mode="wrap")
    def _without_what_is_not_said(self, handler: SerializerFunctionWrapHandler) -> dict[str, object]:
        fields: dict[str, object] = handler(self)
        late = {"withdrawal", "examples", "ledger"}
        return {name: value for name, value in fields.items() if name not in late or value is not None}


class Manifest(_Frozen):
    """What a published version says of itself.

    Args:
        format: the manifest's own format.
        model: the model's name in its registry.
        version: counts from 1, and is never used twice.
        parent: the version that training went on from, None for the first of a run.
        run: the run's id.
        round: the committed round whose parameters these are.
        terms: SHA-256 of the signed terms of the run, in lower-case hexadecimal.
        parameters: the parameters' file.
        program: the program's file.
        cohort: the bounds of the cohorts.
        privacy: what it cost.
        evaluation: metrics by name; numbers as strings.
        created: when it was published, ISO 8601 in UTC.
        code: the version of the code that trained it.
        data_card: what it was trained on and what it is for, free text.
    """

    format: Literal[1] = 1
    model: Name
    version: int = Field(ge=1)
    parent: Annotated[int, Field(ge=1)] | None
    run: str = Field(min_length=1)
    round: int = Field(ge=0)
    terms: Sha256
    parameters: ParametersFile
    program: ProgramFile
    cohort: Cohort
    privacy: Privacy
    evaluation: Annotated[Mapping[str, Number], AfterValidator(MappingProxyType)]
    created: Time
    code: str
    data_card: str

    @field_serializer("evaluation")
    def _plain(self, evaluation: Mapping[str, str]) -> dict[str, str]:
        return dict(evaluation)

    def to_bytes(self) -> bytes:
        """The canonical JSON, UTF-8."""
        text = json.dumps(
            self.model_dump(mode="json"),
            sort_keys=True,
            separators=(",", ":"),
            ensure_ascii=False,
            allow_nan=False,
        )
        return text.encode()

    @classmethod
    def of(cls, fields: Mapping[str, object]) -> Manifest:
        """The manifest with these fields.

        Raises:
            DataError: a field is missing, unknown or bad; each is named.
        """
        try:
            return cls.model_validate(fields)
        except pydantic.ValidationError as error:
            raise DataError(f"the manifest is not valid: {_problems(error)}") from error

    @classmethod
    def from_bytes(cls, data: bytes) -> Manifest:
        """The manifest that canonical JSON holds.

        Raises:
            DataError: it is not JSON, of another format, or a field is missing, unknown or bad; each
                is named.
        """
        try:
            found = json.loads(data)
        except ValueError as error:
            raise DataError(f"the manifest is not JSON: {error}") from error
        if isinstance(found, dict) and isinstance(found.get("format"), int) and found["format"] != FORMAT:
            raise DataError(
                f"the manifest has format {found['format']}, this release of Quorate reads {FORMAT}"
            )
        try:
            manifest = cls.model_validate_json(data)
        except pydantic.ValidationError as error:
            raise DataError(f"the manifest is not valid: {_problems(error)}") from error
        if manifest.to_bytes() != data:
            raise DataError("the manifest is not in its canonical form")
        return manifest


def _problems(error: pydantic.ValidationError) -> str:
    return "; ".join(f"{'.'.join(map(str, e['loc'])) or 'it'}: {e['msg']}" for e in error.errors())
