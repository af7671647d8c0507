"""Choose the next token of many answers at once, each by its own rules and its own chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from serving.engine.grammar import GrammarState, allowed_tokens
from serving.request import NO_LOGPROBS, Sampling, TokenLogprobs


@dataclass(frozen=True)
class Row:
    """One answer's next token. ``row``: its logits; ``seed``, ``index`` and ``position`` alone
    decide its chance, so that it does not depend on what else is in the batch. ``banned``: tokens
    that must not come yet. ``grammar``: which tokens may come at all."""

    row: int
    sampling: Sampling
    seed: int
    index: int
    position: int
    prompt: Sequence[int]
    answer: Sequence[int]
    banned: tuple[int, ...] = ()
    grammar: GrammarState | None = None


@dataclass(frozen=True)
class Sampled:
    """One token for each row, and its log-probabilities where the row asked for them."""

    tokens: list[int]
    logprobs: list[TokenLogprobs | None]


def sample(logits_RV: torch.Tensor, rows: Sequence[Row]) -> Sampled:
    """The next token of each of ``rows``; several may share a row of ``logits_RV``."""
    places = [row.row for row in rows]
    same = places == list(range(logits_RV.shape[0]))
    raw_RV = (logits_RV if same else logits_RV[places]).float()
    chosen_RV = _adjusted(raw_RV, rows)
    tokens_R = _likeliest(chosen_RV)
    chance = [r for r, row in enumerate(rows) if row.sampling.temperature > 0]
    # Apart: sorting for others' sake would give an answer's chance another order of tokens.
    for cut in (False, True):
        drawn = [r for r in chance if _cuts(rows[r].sampling) is cut]
        if drawn:
            tokens_R[drawn] = _drawn(chosen_RV[drawn], [rows[r] for r in drawn], cut=cut)
    tokens = tokens_R.tolist()
    return Sampled(tokens, _logprobs(raw_RV, rows, tokens))


def _likeliest(logits_RV: torch.Tensor) -> torch.Tensor:
    """The argmax of each row; on a CPU numpy's, which takes a tenth of the time."""
    if logits_RV.device.type == "cpu":
        return torch.from_numpy(logits_RV.numpy().argmax(-1))
    return logits_RV.argmax(-1)


def _adjusted(raw_RV: torch.Tensor, rows: Sequence[Row]) -> torch.Tensor:
    """Logits after penalties, bias and bans; the same tensor where nobody asked for any."""
    touched = [r for r, row in enumerate(rows) if penalised(row.sampling)]
    biased = [
        (r, token, bias)
        for r, row in enumerate(rows)
        for token, bias in [
            *row.sampling.logit_bias.items(),
            *((b, -torch.inf) for b in row.banned),
        ]
    ]
    formed = [r for r, row in enumerate(rows) if row.grammar is not None]
    if not touched and not biased and not formed:
        return raw_RV
    logits_RV = raw_RV.clone()
    if touched:
        logits_RV[touched] = _with_penalties(raw_RV[touched], [rows[r] for r in touched])
    if biased:
        where_r, where_v, bias = zip(*biased, strict=True)
        index = (torch.tensor(where_r), torch.tensor(where_v))
        values = torch.tensor(bias, device=raw_RV.device)
        logits_RV.index_put_(tuple(i.to(raw_RV.device) for i in index), values, accumulate=True)
    if formed:
        states = [row.grammar for row in rows if row.grammar is not None]
        allowed_RV = allowed_tokens(states, raw_RV.shape[1]).to(raw_RV.device)
        logits_RV[formed] = logits_RV[formed].masked_fill(~allowed_RV, -torch.inf)
    return logits_RV


def penalised(s: Sampling) -> bool:
    """Whether the answer so far changes what comes next; only then does a ``Row`` need it."""
    return bool(s.presence_penalty or s.frequency_penalty or s.repetition_penalty != 1)


def _with_penalties(logits_RV: torch.Tensor, rows: Sequence[Row]) -> torch.Tensor:
    answer_RV = _counts([row.answer for row in rows], logits_RV)
    seen_RV = (_counts([row.prompt for row in rows], logits_RV) + answer_RV) > 0
    repetition, presence, frequency = (
        torch.tensor([getattr(row.sampling, name) for row in rows], device=logits_RV.device)[
            :, None
        ]
        for name in ("repetition_penalty", "presence_penalty", "frequency_penalty")
    )
    repeated_RV = torch.where(logits_RV > 0, logits_RV / repetition, logits_RV * repetition)
    logits_RV = torch.where(seen_RV, repeated_RV, logits_RV)
    return logits_RV - presence * (answer_RV > 0) - frequency * answer_RV


def _counts(tokens: Sequence[Sequence[int]], like_RV: torch.Tensor) -> torch.Tensor:
    counts_RV = torch.zeros_like(like_RV)
    lengths = torch.tensor([len(row) for row in tokens])
    where_r = torch.repeat_interleave(torch.arange(len(tokens)), lengths).to(like_RV.device)
    where_v = torch.tensor([t for row in tokens for t in row], dtype=torch.int64)
    ones = torch.ones(len(where_v), device=like_RV.device)
    return counts_RV.index_put_((where_r, where_v.to(like_RV.device)), ones, accumulate=True)


def _cuts(s: Sampling) -> bool:
    return bool(s.top_k or s.top_p < 1 or s.min_p)


def _drawn(logits_RV: torch.Tensor, rows: Sequence[Row], *, cut: bool) -> torch.Tensor:
    """One token for each row by its temperature, top-k, top-p and min-p, in this order."""
    device = logits_RV.device
    chance_R = torch.tensor(
        [_uniform(row.seed, row.index, row.position) for row in rows],
        dtype=torch.float64,
        device=device,
    )
    temperature_R1 = torch.tensor([[row.sampling.temperature] for row in rows], device=device)
    logits_RV = (logits_RV - logits_RV.amax(-1, keepdim=True)) / temperature_R1
    order_RV = None
    if cut:
        logits_RV, order_RV = logits_RV.sort(dim=-1, descending=True, stable=True)
        logits_RV = _cut(logits_RV, rows)
    sums_RV = torch.softmax(logits_RV, dim=-1, dtype=torch.float64).cumsum(-1)
    # Chance is below 1, so that the product lies below the last sum, also where sums fall short.
    place_R1 = torch.searchsorted(sums_RV, (chance_R * sums_RV[:, -1])[:, None], right=True)
    tokens_R1 = place_R1 if order_RV is None else order_RV.gather(1, place_R1)
    return tokens_R1[:, 0]


def _cut(sorted_RV: torch.Tensor, rows: Sequence[Row]) -> torch.Tensor:
    V = sorted_RV.shape[1]
    device = sorted_RV.device
    top_k_R1 = torch.tensor([[row.sampling.top_k or V] for row in rows], device=device)
    top_p_R1 = torch.tensor([[row.sampling.top_p] for row in rows], device=device)
    min_p_R1 = torch.tensor([[row.sampling.min_p] for row in rows], device=device)
    cut_RV = sorted_RV.masked_fill(torch.arange(V, device=device) >= top_k_R1, -torch.inf)
    probabilities_RV = torch.softmax(cut_RV, dim=-1)
    before_RV = probabilities_RV.cumsum(-1) - probabilities_RV
    out = (before_RV >= top_p_R1) & (top_p_R1 < 1)
    out |= probabilities_RV < min_p_R1 * probabilities_RV[:, :1]
    out[:, 0] = False
    return cut_RV.masked_fill(out, -torch.inf)


_MASK = (1 << 64) - 1


def _uniform(seed: int, index: int, position: int) -> float:
    """In [0, 1), by SplitMix64 over the three: a counter instead of a generator's state."""
    state = seed & _MASK
    for word in (index, position):
        state = (state + (word + 1) * 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return (state >> 11) / (1 << 53)


def _logprobs(
    raw_RV: torch.Tensor, rows: Sequence[Row], tokens: Sequence[int]
) -> list[TokenLogprobs | None]:
    asked = [r for r, row in enumerate(rows) if row.sampling.logprobs != NO_LOGPROBS]
    found: list[TokenLogprobs | None] = [None] * len(rows)
    if asked:
        counts = [rows[r].sampling.logprobs for r in asked]
        each = token_logprobs(raw_RV[asked], [tokens[r] for r in asked], counts)
        for r, one in zip(asked, each, strict=True):
            found[r] = one
    return found


def token_logprobs(
    logits_RV: torch.Tensor, tokens: Sequence[int], counts: Sequence[int]
) -> list[TokenLogprobs]:
    """Of one of ``tokens`` in each row, with as many of the likeliest as ``counts`` says."""
    log_RV = torch.log_softmax(logits_RV.float(), dim=-1)
    chosen_R1 = torch.tensor([[token] for token in tokens], device=log_RV.device)
    chosen = log_RV.gather(1, chosen_R1)[:, 0].tolist()
    top_values, top_tokens = (x.tolist() for x in log_RV.topk(max(counts), dim=-1))
    return [
        TokenLogprobs(
            token, chosen[r], tuple(zip(top_tokens[r], top_values[r], strict=True))[:count]
        )
        for r, (token, count) in enumerate(zip(tokens, counts, strict=True))
    ]
