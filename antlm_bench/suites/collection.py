"""What a collection is, as data: suites that are reported together, what each of them weighs, and
what was published.

A macro-average is a convention of the year's leaderboard; it stands in the collection's TOML, with
its source.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from antlm_bench.declarations import Declaration, TomlTuple, suggest_name
from antlm_bench.suites.spec import Text

Percent = Annotated[float, Field(ge=-100, le=100, strict=False)]


class MemberSpec(Declaration):
    """One column of a leaderboard.

    label: how tables call it, by default the suite. made_by: the verb that computes it, "nothing"
    where none does yet. tasks: of a finetuned suite, those whose scores are averaged (without
    weights). suites: scored ones, averaged in the same way; `suite` then only names the whole.
    metric: instead of the suite's own headline a view or a group of it (micro, eye-tracking). over:
    instead the unweighted mean over a level's groups.
    """

    suite: Text
    label: str = ""
    made_by: Literal["score", "finetune", "acquisition", "nothing"] = "score"
    tasks: TomlTuple[Text] = ()
    suites: TomlTuple[Text] = ()
    weight: Annotated[float, Field(gt=0, strict=False)] = 1.0
    metric: str = ""
    over: str = ""

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
    def name(self) -> str:
        return self.label or self.suite

    @property
    def suite_names(self) -> tuple[str, ...]:
        """The suites behind the number."""
        return self.suites or (self.suite,)


class PublishedScoresSpec(Declaration):
    """A row of somebody's table, as printed: percent per member's label, and the macro-average if
    one was printed.
    """

    name: Text
    values: Annotated[dict[Text, Percent], Field(min_length=1)]
    source: Text
    macro: Percent | None = None
    notes: TomlTuple[Text] = ()


class CollectionSpec(Declaration):
    """Suites that are reported together; the macro-average is the mean of the members' numbers by
    their weights.
    """

    kind: Literal["collection"]
    name: Text
    version: Text
    title: Text
    members: Annotated[TomlTuple[MemberSpec], Field(min_length=1)]
    macro: Literal["mean"] = "mean"
    homepage: str = ""
    notes: TomlTuple[Text] = ()
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

    def list_suites(self, made_by: str = "score") -> list[str]:
        """The suites that a verb computes, in order."""
        found = (
            suite
            for member in self.members
            if member.made_by == made_by
            for suite in member.suite_names
        )
        return list(dict.fromkeys(found))
