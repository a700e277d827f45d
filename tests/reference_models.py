"""Reference LTG-BERT, ELC-BERT and GPT-BERT: plain loops over tokens and heads in double precision.

Written from the papers, one token vector at a time; independent of the package. Weights are a
dict: embedding (V, d), table (R, d), table_norm (w, b), layers [dict of qk_w qk_b v_w v_b (g_w g_b)
o_w o_b (norm_w norm_b) wide narrow (alpha | alphas)], (alpha), head dense_w dense_b bias.
"""

from __future__ import annotations

import math

import numpy as np


def bucket(distance: int, buckets: int, furthest: int) -> int:
    """Signed bucket of a distance, before the shift that makes it an index."""
    size, exact = abs(distance), buckets // 2
    if size <= exact:
        return distance
    size = min(size, furthest - 1)
    grown = math.log(size / exact) / math.log((furthest - 1) / exact) * (exact - 1)
    return int(math.copysign(exact + math.ceil(round(grown, 9)), distance))


def norm(x, eps, weight=None, bias=None):
    y = (x - x.mean()) / math.sqrt(((x - x.mean()) ** 2).mean() + eps)
    return y if weight is None else y * weight + bias


def gelu(x):
    return np.array([0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x])


def gelu_tanh(x):
    return np.array(
        [0.5 * v * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))) for v in x]
    )


def softmax(x):
    e = np.exp(np.asarray(x) - np.max(x))
    return e / e.sum()


def attention(xs, layer, vectors, settings, allowed):
    """One attention block: list of T vectors -> list of T vectors, before any residual."""
    d, heads, eps = len(xs[0]), settings["heads"], settings["eps"]
    h = d // heads
    xs = [norm(x, eps) for x in xs]
    qk = [layer["qk_w"] @ x + layer["qk_b"] for x in xs]
    at = [layer["qk_w"] @ r + layer["qk_b"] for r in vectors]
    values = [layer["v_w"] @ x + layer["v_b"] for x in xs]

    def query_at(bucket_number, head):
        v = at[bucket_number]
        return (
            v[2 * head * h : (2 * head + 1) * h]
            if settings.get("per_head")
            else v[head * h : (head + 1) * h]
        )

    def key_at(bucket_number, head):
        v = at[bucket_number]
        return (
            v[(2 * head + 1) * h : (2 * head + 2) * h]
            if settings.get("per_head")
            else v[d + head * h : d + (head + 1) * h]
        )

    out = []
    for i in range(len(xs)):
        context = np.zeros(d)
        for head in range(heads):
            s = slice(head * h, (head + 1) * h)
            scores, seen = [], [j for j in range(len(xs)) if allowed(i, j)]
            for j in seen:
                r = (
                    bucket(i - j, settings["buckets"], settings["furthest"])
                    + settings["buckets"]
                    - 1
                )
                query, key = qk[i][:d][s], qk[j][d:][s]
                score = query @ key + query @ key_at(r, head) + key @ query_at(r, head)
                scores.append(score / math.sqrt(3 * h))
            for j, p in zip(seen, softmax(scores), strict=True):
                context[s] += p * values[j][s]
        if "norm_w" in layer:  # LTG-BERT: normalised after the projection
            out.append(
                norm(layer["o_w"] @ context + layer["o_b"], eps, layer["norm_w"], layer["norm_b"])
            )
        else:
            if "g_w" in layer:
                context = context * gelu(layer["g_w"] @ xs[i] + layer["g_b"])
            out.append(layer["o_w"] @ norm(context, eps) + layer["o_b"])
    return out


def feed_forward(xs, layer, eps):
    out = []
    for x in xs:
        y = layer["wide"] @ norm(x, eps)
        inner = y[: len(y) // 2] * gelu_tanh(y[len(y) // 2 :])
        out.append(layer["narrow"] @ norm(inner, eps))
    return out


def mixed(weights, states):
    return [
        sum(w * state[t] for w, state in zip(weights, states, strict=True))
        for t in range(len(states[0]))
    ]


def plus(xs, ys):
    return [x + y for x, y in zip(xs, ys, strict=True)]


def hidden(weights, settings, ids, allowed):
    """The body's output: T vectors of size d. settings: heads eps buckets furthest mix ("" ... or
    "gpt") per_head.
    """
    eps, mix = settings["eps"], settings["mix"]
    vectors = [norm(r, eps, *weights["table_norm"]) for r in weights["table"]]
    x = [norm(weights["embedding"][i], eps) for i in ids]
    states = [x]
    for layer in weights["layers"]:
        if mix == "gpt":
            states.append(plus(x, attention(x, layer, vectors, settings, allowed)))
            x = mixed(layer["alphas"][0], states) if "alphas" in layer else states[-1]
            states.append(plus(x, feed_forward(x, layer, eps)))
            x = mixed(layer["alphas"][1], states) if "alphas" in layer else states[-1]
            continue
        x = mixed(softmax(layer["alpha"]), states) if mix else states[-1]
        a = attention(x, layer, vectors, settings, allowed)
        if mix == "":
            x = plus(x, a)
            x = plus(x, feed_forward(x, layer, eps))
        elif mix == "base":
            x = plus(a, feed_forward(a, layer, eps))
        else:
            x = plus(a, feed_forward(plus(x, a), layer, eps))
            if mix == "normalized":
                x = [norm(v, eps) for v in x]
        states.append(x)
    return mixed(softmax(weights["alpha"]), states) if mix == "weighted_output" else x


def logits(weights, settings, ids, allowed=lambda i, j: True):
    """(T, V) scores of the language-model head."""
    eps, out = settings["eps"], []
    for x in hidden(weights, settings, ids, allowed):
        y = norm(gelu(weights["dense_w"] @ norm(x, eps) + weights["dense_b"]), eps)
        out.append(weights["embedding"] @ y + weights["bias"])
    return np.array(out)


def random_weights(
    rng, mix, *, vocabulary=20, d=12, inner=16, layers=3, buckets=8, gate=True, learned=True
):
    """Draw weights so large that every term of the formulas changes the result."""

    def draw(*shape):
        return rng.normal(size=shape) * 0.4

    layer_weights = []
    for n in range(layers):
        layer = {
            "qk_w": draw(2 * d, d),
            "qk_b": draw(2 * d),
            "v_w": draw(d, d),
            "v_b": draw(d),
            "o_w": draw(d, d),
            "o_b": draw(d),
            "wide": draw(2 * inner, d),
            "narrow": draw(d, inner),
        }
        if mix == "gpt":
            layer |= {"g_w": draw(d, d), "g_b": draw(d)} if gate else {}
            layer |= {"alphas": (draw(2 * n + 2), draw(2 * n + 3))} if learned else {}
        else:
            layer |= {"norm_w": 1 + draw(d), "norm_b": draw(d)}
            layer |= {"alpha": draw(n + 1)} if mix else {}
        layer_weights.append(layer)
    weights = {
        "embedding": draw(vocabulary, d),
        "table": draw(2 * buckets - 1, d),
        "layers": layer_weights,
        "table_norm": (1 + draw(d), draw(d)),
        "dense_w": draw(d, d),
        "dense_b": draw(d),
        "bias": draw(vocabulary),
    }
    if mix == "weighted_output":
        weights["alpha"] = draw(layers + 1)
    return weights
