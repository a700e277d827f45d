"""Declarations of collections: suites that are reported together, their weights, published rows.

A macro-average is a convention of the year's leaderboard; it stands in the collection's TOML, with
its source.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from antlm_bench.declarations import Declaration, TomlTuple, suggest_name
from antlm_bench.suites.declaration_types import SuiteDeclaration, Text

Percent = Annotated[float, Field(ge=-100, le=100, strict=False)]
# The value of `made_by` -> the task type of such members; "" = nothing computes them.
TASK_TYPE_OF_COMMAND = {
    "score": "suite",
    "finetune": "classification",
    "acquisition": "acquisition",
    "nothing": "",
}


class MemberSpec(Declaration):
    """One column of a leaderboard."""

    suite: Text
    label: str = ""
    """What tables call it; "" = the suite's name."""
    made_by: Literal["score", "finetune", "acquisition", "nothing"] = "score"
    """The command that computes it."""
    tasks: TomlTuple[Text] = ()
    """Of a finetuned suite: the tasks whose scores are averaged, without weights."""
    suites: TomlTuple[Text] = ()
    """Scored suites that are averaged, without weights; `suite` then only names the whole."""
    weight: Annotated[float, Field(gt=0, strict=False)] = 1.0
    metric: str = ""
    """A view or a group of the suite instead of its headline (micro, eye-tracking)."""
    over: str = ""
    """A level: the unweighted mean over its groups instead of the headline."""

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, table: Any) -> Any:
        return {"suite": table} if isinstance(table, str) else table

    @model_validator(mode="after")
    def _check_consistency(self) -> MemberSpec:
        if bool(self.tasks) != (self.made_by == "finetune"):
            raise ValueError('`tasks` goes with made_by = "finetune", and that needs it')
        if self.suites and self.made_by != "score":
            raise ValueError("`suites` are scored; what is finetuned has `tasks`")
        if self.over and (self.metric or self.made_by != "score"):
            raise ValueError("`over` averages the groups of a scored suite, in its own metric")
        return self

    @property
    def task_type(self) -> str:
        """The name of the task type that computes it; "" where nothing does."""
        return TASK_TYPE_OF_COMMAND[self.made_by]

    @property
    def name(self) -> str:
        return self.label or self.suite

    @property
    def suite_names(self) -> tuple[str, ...]:
        """The suites behind the number."""
        return self.suites or (self.suite,)


class PublishedScoresSpec(Declaration):
    """A row of a published table, as printed."""

    name: Text
    values: Annotated[dict[Text, Percent], Field(min_length=1)]
    """Member's label -> percent."""
    source: Text
    macro: Percent | None = None
    """The macro-average, if one was printed."""
    notes: TomlTuple[Text] = ()


class CollectionSpec(SuiteDeclaration):
    """Suites that are reported together; the headline is the weighted mean of the members."""

    kind: Literal["collection"]
    name: Text
    members: Annotated[TomlTuple[MemberSpec], Field(min_length=1)]
    macro: Literal["mean"] = "mean"
    published: TomlTuple[PublishedScoresSpec] = ()

    @model_validator(mode="after")
    def _check_consistency(self) -> CollectionSpec:
        names = [member.name for member in self.members]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"two members are called {twice[0]!r}; give one a `label` of its own")
        for row in self.published:
            for label in row.values:
                if label not in names:
                    close = suggest_name(label, names) or f"members are {', '.join(names)}"
                    raise ValueError(
                        f"{row.name!r} has a value for {label!r}, which is no member: {close}"
                    )
        return self

    def list_suites(self, command: str = "score") -> list[str]:
        """Return the suites that a command computes, in order; "" = that any command computes."""
        return list(
            dict.fromkeys(
                suite
                for member in self.members
                if member.task_type and command in ("", member.made_by)
                for suite in member.suite_names
            )
        )
