"""Declarations of collections: suites that are reported together, their weights, published scores.

A collection is averaged as its leaderboard averages, which the TOML cites (`homepage`, `notes`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from antlm_bench.declarations import Declaration, TomlTuple, suggest_name
from antlm_bench.suites.declaration_types import SuiteDeclaration, Text

Percent = Annotated[float, Field(ge=-100, le=100, strict=False)]
"""A score times 100. Correlations may be negative."""
TASK_TYPE_BY_COMMAND = {
    "score": "suite",
    "finetune": "classification",
    "acquisition": "acquisition",
    "nothing": "",
}
"""Value of `made_by` -> name of the member's task type; "" = no command computes it. "suite" is the
task type of minimal pairs and multiple choice."""


class MemberSpec(Declaration):
    """A member of a collection: one column of a leaderboard."""

    suite: Text
    label: str = ""
    """Name in tables; "" = the suite's name."""
    made_by: Literal["score", "finetune", "acquisition", "nothing"] = "score"
    """The command that computes the score; "nothing" = no command computes it yet."""
    tasks: TomlTuple[Text] = ()
    """Tasks of the finetuned suite. The member's score is the unweighted mean of their scores."""
    suites: TomlTuple[Text] = ()
    """If given, the member's score is the unweighted mean of these suites' scores, and `suite` is
    only the member's name."""
    weight: Annotated[float, Field(gt=0, strict=False)] = 1.0
    view: str = Field(default="", alias="metric")
    """Name of the view or group whose score is used, such as "micro" or "eye-tracking" (see
    types.Summary); "" = the suite's headline score."""
    average_over: str = Field(default="", alias="over")
    """Label level, such as "phenomenon": the member's score is the unweighted mean over its groups;
    "" = the suite's headline score."""

    @model_validator(mode="before")
    @classmethod
    def _accept_plain_name(cls, table_or_name: Any) -> Any:
        return {"suite": table_or_name} if isinstance(table_or_name, str) else table_or_name

    @model_validator(mode="after")
    def _check_consistency(self) -> MemberSpec:
        if bool(self.tasks) != (self.made_by == "finetune"):
            raise ValueError('`tasks` and made_by = "finetune" must be used together')
        if self.suites and self.made_by != "score":
            raise ValueError(f'`suites` needs made_by = "score", not {self.made_by!r}')
        if self.average_over and (self.view or self.made_by != "score"):
            raise ValueError('`over` needs made_by = "score", and cannot be used with `metric`')
        return self

    @property
    def task_type(self) -> str:
        """The name of the task type that computes the score; "" = no command computes it."""
        return TASK_TYPE_BY_COMMAND[self.made_by]

    @property
    def name(self) -> str:
        return self.label or self.suite

    @property
    def suite_names(self) -> tuple[str, ...]:
        """The names of the suites that the score is computed from."""
        return self.suites or (self.suite,)


class PublishedScoresSpec(Declaration):
    """The published scores of a model: a row of a printed table."""

    name: Text
    values: Annotated[dict[Text, Percent], Field(min_length=1)]
    """Label of a member -> percent."""
    source: Text
    macro_average: Percent | None = Field(default=None, alias="macro")
    """Percent; None = not published."""
    notes: TomlTuple[Text] = ()


class CollectionSpec(SuiteDeclaration):
    """Suites that are reported together. The headline is the weighted mean of the members."""

    kind: Literal["collection"]
    name: Text
    members: Annotated[TomlTuple[MemberSpec], Field(min_length=1)]
    aggregation: Literal["mean"] = Field(default="mean", alias="macro")
    """How the members' scores become one: the mean with their weights."""
    published: TomlTuple[PublishedScoresSpec] = ()

    @model_validator(mode="after")
    def _check_consistency(self) -> CollectionSpec:
        names = [member.name for member in self.members]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two members are called {name!r}; give one of them a `label`")
        for row in self.published:
            for label in row.values:
                if label not in names:
                    suggestion = suggest_name(label, names) or f"members are {', '.join(names)}"
                    raise ValueError(
                        f"{row.name!r} has a value for {label!r}, which is not a member: "
                        f"{suggestion}"
                    )
        return self

    def list_suites(self, command: str = "score") -> list[str]:
        """Return the suites that a command computes, in order; command "" = any command."""
        return list(
            dict.fromkeys(
                suite
                for member in self.members
                if member.task_type and command in ("", member.made_by)
                for suite in member.suite_names
            )
        )
