"""The decisions and checks of the official collators, reimplemented independently of our schemas.

evaluation-pipeline-2024: collect_results.py, which counts the lines of the data.
evaluation-pipeline-2025 and babylm-eval/strict: evaluation_pipeline/collate_preds.py and
sentence_zero_shot/compute_results.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

# STRICT_SMALL_FAST_REVISIONS of the official code
MILESTONES = [f"chck_{n}M" for n in (*range(1, 10), *range(10, 101, 10))]
READING, CONTEXTS = 1726, 8005

BLIMP = """
superlative_quantifiers_2 986 superlative_quantifiers_1 979 anaphor_gender_agreement 971
principle_a_reconstruction 967 irregular_past_participle_adjectives 961 sentential_subject_island
961 wh_island 960 tough_vs_raising_1 948 left_branch_island_simple_question 951
coordinate_structure_constraint_object_extraction 949 left_branch_island_echo_question 947
principle_a_c_command 946 regular_plural_subject_verb_agreement_2 945
irregular_past_participle_verbs 942 determiner_noun_agreement_with_adj_2 941 principle_a_domain_3
941 determiner_noun_agreement_with_adjective_1 933 anaphor_number_agreement 931
determiner_noun_agreement_2 931 existential_there_quantifiers_1 930 determiner_noun_agreement_1
929 matrix_question_npi_licensor_present 929 adjunct_island 928 existential_there_subject_raising
924 animate_subject_trans 923 drop_argument 920 tough_vs_raising_2 920 wh_vs_that_with_gap 919
sentential_negation_npi_licensor_present 919 principle_a_case_2 915 principle_a_domain_2 915
principle_a_domain_1 914 npi_present_2 914 principle_a_case_1 912 existential_there_quantifiers_2
911 wh_vs_that_with_gap_long_distance 910 npi_present_1 909
coordinate_structure_constraint_complex_left_branch 906 passive_2 903 wh_questions_subject_gap 898
animate_subject_passive 895 irregular_plural_subject_verb_agreement_2 892
regular_plural_subject_verb_agreement_1 890 only_npi_licensor_present 882
wh_vs_that_no_gap_long_distance 875 distractor_agreement_relative_clause 871
sentential_negation_npi_scope 871 intransitive 868 transitive 868 wh_vs_that_no_gap 861
wh_questions_object_gap 859 wh_questions_subject_gap_long_distance 857 inchoative 855
complex_np_island 846 passive_1 840 determiner_noun_agreement_with_adj_irregular_2 840
only_npi_scope 837 ellipsis_n_bar_2 828 determiner_noun_agreement_irregular_2 820 causative 818
existential_there_object_raising 812 irregular_plural_subject_verb_agreement_1 804
ellipsis_n_bar_1 802 distractor_agreement_relational_noun 788 expletive_it_object_raising 759
determiner_noun_agreement_with_adj_irregular_1 718 determiner_noun_agreement_irregular_1 681
"""
SUPPLEMENT = """
hypernym 842 qa_congruence_easy 64 qa_congruence_tricky 165 subject_aux_inversion 3867
turn_taking 280
"""
EWOK = """
agent-properties 2210 social-relations 1548 physical-relations 818 material-dynamics 770
physical-interactions 556 spatial-relations 490 social-properties 328 quantitative-properties 314
social-interactions 294 material-properties 170 physical-dynamics 120
"""
COMPS = "base 49340 wugs_dist_before 13896 wugs_dist_in_between 13896 wugs 13896"
GLUE_2024 = """
cola 522 sst2 436 mrpc 204 qqp 20215 mnli 4908 mnli-mm 4916 qnli 2732 rte 139 boolq 1635 multirc
2424 wsc 52
"""
GLUE = "boolq 1635 mnli 4908 mrpc 204 multirc 2424 qqp 20215 rte 139 wsc 52"
OPERATIONS = {  # items after 0 to 5 operations
    "2025": {
        "regular": (606, 607, 606, 606, 568, 159),
        "ambiref": (607, 607, 604, 604, 615, 187),
        "move_contents": (605, 606, 605, 606, 529, 156),
    },
    "2026": {
        "regular": (517, 409, 405, 425, 388, 94),
        "ambiref": (508, 428, 413, 409, 434, 123),
        "move_contents": (516, 437, 399, 406, 353, 116),
    },
}
GLOBAL_PIQA = {
    "global_piqa_parallel": 103,
    "global_piqa_nonparallel": 100,
}  # examples with an answer each


def parse_counts(text: str) -> dict[str, int]:
    words = text.split()
    return {name: int(n) for name, n in zip(words[::2], words[1::2], strict=True)}


def argmax_first(scores: Sequence[float]) -> int:
    """Return the index of the first maximum, as numpy.argmax (2024) and torch.max (2025) do."""
    best = 0
    for index, score in enumerate(scores):
        if score > scores[best]:
            best = index
    return best


def compute_subtask_accuracies(
    answers: Mapping[str, Sequence[str]], targets: Mapping[str, Sequence[str]]
) -> dict[str, float]:
    """Return the accuracy of each subtask (_calculate_target_results); texts are stripped."""
    return {
        subtask: sum(
            answer.strip() == target.strip()
            for answer, target in zip(texts, targets[subtask], strict=True)
        )
        / len(texts)
        for subtask, texts in answers.items()
    }


def expected_sizes(year: str) -> dict[str, dict[str, int]]:
    """Return FULL_SIZES: part -> key (in lower case) -> number of predictions."""
    if year == "2024":
        ewok = {"ewok": parse_counts(EWOK), "glue": parse_counts(GLUE_2024)}
        return {"blimp": parse_counts(BLIMP), "blimp_supplement": parse_counts(SUPPLEMENT), **ewok}
    counts = {
        "blimp": parse_counts(BLIMP),
        "blimp_supplement": parse_counts(SUPPLEMENT),
        "ewok": parse_counts(EWOK),
        "comps": parse_counts(COMPS),
    }
    operations = {
        f"{kind}_{n}_ops": k for kind, ks in OPERATIONS[year].items() for n, k in enumerate(ks)
    }
    counts |= {"reading": {"reading": READING}, "glue": parse_counts(GLUE)}
    if year == "2025":
        return counts | {
            "entity_tracking": operations,
            "wug_adj": {"wug_adj": 200},
            "wug_past": {"wug_past": 50},
        }
    return counts | {"entity_tracking_filtered": operations}


def iter_problems(document: dict[str, Any], year: str) -> Iterator[str]:
    """Yield every check of the year's collator that a strict-small file fails."""
    for part, expected in expected_sizes(year).items():
        actual = {key.lower(): len(value["predictions"]) for key, value in document[part].items()}
        if actual != expected:
            yield f"{part}: {dict(actual.items() ^ expected.items())}"
    if year == "2024":  # verify_dict
        kinds = {"glue": int}
        for part, subtasks in document.items():
            for key, value in subtasks.items():
                ids = [row["id"] for row in value["predictions"]]
                if ids != [f"{key}_{n}" for n in range(len(ids))]:
                    yield f"{part}.{key}: ids out of order"
                if not all(
                    type(row["pred"]) is kinds.get(part, str) for row in value["predictions"]
                ):
                    yield f"{part}.{key}: answers of another kind"
        return
    for part, n in GLOBAL_PIQA.items() if year == "2026" else ():
        if [len(value["predictions"]) for value in document[part].values()] != [1] * n:
            yield f"{part}: not one answer to each of {n} examples"
    surprisals = document["aoa" if year == "2025" else "aoa_surprisals"]["results"]
    if Counter(row["step"] for row in surprisals) != dict.fromkeys(MILESTONES, CONTEXTS):
        yield "aoa: not every context at every milestone"
    if year == "2026" and not isinstance(document["aoa"]["aoa"], float):
        yield "aoa: no number"
    for part, entries in document["fast_eval_results"].items():
        if len(entries) != len(MILESTONES) or None in entries:
            yield f"fast_eval_results.{part}: not one entry per milestone"
