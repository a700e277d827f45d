"""A language model that looks scores up, so that choices can be checked by hand."""

from __future__ import annotations

import numpy as np

from antlm_bench.types import EncodedBatch, Encodings


class LookupModel:
    """One token per word of `scores` (word -> log-probability in any context)."""

    name, eos, attentions, mask_id, max_length = "lookup", "None", frozenset({"causal"}), None, 8

    def __init__(self, scores: dict[str, float], bos: bool = True, noise: float = 0.0) -> None:
        self.words, self.scores, self.bos, self.noise = (
            list(scores),
            list(scores.values()),
            bos,
            noise,
        )
        self.asked = 0

    def encode(self, texts, spans, attention):
        by_length: dict[int, list[tuple[int, list[int], list[bool]]]] = {}
        too_long, unk = np.zeros(len(texts), bool), np.zeros(len(texts), bool)
        for number, (text, span) in enumerate(zip(texts, spans, strict=True)):
            ids, counts, at = [0] * self.bos, [False] * self.bos, 0
            for word in text.split():
                at = text.index(word, at)
                ids.append(self.words.index(word) + 1)
                counts.append(span is None or (at + len(word) > span[0] and at < span[1]))
                at += len(word)
            unk[number] = "huh" in text
            too_long[number] = len(ids) > self.max_length
            if not too_long[number]:
                by_length.setdefault(len(ids), []).append((number, ids, counts))
        lengths = []
        for rows in by_length.values():
            ids = np.array([r[1] for r in rows], np.int32)
            scored, text = np.array([r[2] for r in rows]), np.array([r[0] for r in rows], np.int32)
            lengths.append(EncodedBatch(ids, scored, np.zeros_like(ids), text))
        return Encodings(tuple(lengths), unk, too_long)

    def score_probes(self, probes, num_texts, tick=None):
        total = np.zeros(num_texts)
        for p in probes:
            self.asked += len(p.row)
            off = self.noise * np.sin(1.0 + p.target * 12.9898 + p.text_index * 78.233)
            np.add.at(total, p.text_index, np.array(self.scores)[p.target - 1] + off)
        return total
