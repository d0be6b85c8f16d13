"""The doctor's checks of the data: gold answers, targets, prompts, questions of the test, lengths."""

from __future__ import annotations

from collections.abc import Sequence

from nanogpt_edit.common.errors import UserError
from nanogpt_edit.data.chat_samples import to_chat_sample
from nanogpt_edit.data.chats import Chat
from nanogpt_edit.data.problems import Problem
from nanogpt_edit.data.samples import Sample, prompt_ids, to_sample
from nanogpt_edit.doctor.findings import Finding
from nanogpt_edit.model.chat_template import render_chat
from nanogpt_edit.model.tokenizer import Tokenizer
from nanogpt_edit.training.grpo_config import GRPOConfig
from nanogpt_edit.training.rewards import BUILT_IN, find_rewards, score

FULL_MARK = {"cosine": 0.5, "repetition": -1.0}  # what a good solution earns at least; 1 from any other reward


def check_gold(problems: Sequence[Problem], tokenizer: Tokenizer, config: GRPOConfig) -> Finding:
    """Does the worked solution itself, as the model would write it, earn 1 (`FULL_MARK`) from every reward?

    The scale of a function of one's own is unknown: to it the solution need only be worth more than an empty text.
    Where it is not, or where the function fails on that text, that is only a warning.
    """
    poor: dict[str, list[str]] = {}
    rewards = find_rewards(config.rewards)
    own = {name: reward for name, reward in rewards.items() if name not in BUILT_IN}
    for problem in problems:
        ids = to_sample(problem, tokenizer).token_ids[len(prompt_ids(problem, tokenizer)) :]
        found = score(rewards, problem, [tokenizer.decode(ids)])
        try:
            nothing = score(own, problem, [""])
        except UserError as error:
            return Finding("gold answers", "warn", str(error), "a model may write nothing: let the reward answer that")
        for name in rewards:
            [value] = found[name]
            if name in own and value <= nothing[name][0]:
                poor.setdefault(name, []).append(f"{problem.id} earns {value:g}, an empty text {nothing[name][0]:g}")
            elif name not in own and value < FULL_MARK.get(name, 1.0):
                poor.setdefault(name, []).append(f"{problem.id} earns {value:g}")
    if not poor:
        told = "full marks from every built-in reward, more than an empty text from your own" if own else "full marks"
        return Finding("gold answers", "ok", f"{len(problems)} worked solutions earn {told}")
    broken = any(name in BUILT_IN and len(cases) > len(problems) / 2 for name, cases in poor.items())
    told = "; ".join(f'reward "{name}": {len(cases)} of {len(problems)}, {cases[0]}' for name, cases in poor.items())
    return Finding(
        "gold answers",
        "fail" if broken else "warn",
        f"worked solutions that do not earn full marks ({told})",
        "look at these problems' answers and at the reward's way of reading them; one of your own should tell a "
        "solution from nothing, unless another reward does",
    )


def check_targets(samples: Sequence[Sample], tokenizer: Tokenizer) -> Finding:
    """Is there something to learn in every row, and is the stop token part of it?"""
    empty = sum(not any(sample.loss_mask) for sample in samples)
    if empty:
        return Finding(
            "loss mask",
            "fail",
            f"{empty} of {len(samples)} examples have no target token",
            "their loss mask must be 1 from <think> on",
        )
    endless = sum(not (sample.loss_mask[-1] and sample.token_ids[-1] == tokenizer.answer_end) for sample in samples)
    if endless:
        return Finding(
            "loss mask",
            "fail",
            f"{endless} of {len(samples)} examples do not end in </answer> as a target: the model never learns to stop",
            "end every example with </answer>, and its loss mask with 1",
        )
    return Finding("loss mask", "ok", f"{len(samples)} examples have targets, </answer> the last of them")


def check_endings(samples: Sequence[Sample], tokenizer: Tokenizer) -> Finding:
    """Does every reply of a conversation end in a token that ends generation?"""
    endless = 0
    for sample in samples:
        mask = (*sample.loss_mask, 0)
        ends = [token for i, token in enumerate(sample.token_ids) if mask[i] and not mask[i + 1]]
        endless += not all(token in tokenizer.stop_ids for token in ends)
    if not endless:
        return Finding("endings", "ok", f"every reply in {len(samples)} conversations ends in a token that ends a text")
    return Finding(
        "endings",
        "fail",
        f"{endless} of {len(samples)} conversations have a reply that no end-of-text token ends: the model never "
        "learns to stop",
        "use a chat template that writes one behind each reply (--sft.chat-template plain does)",
    )


def check_prompts(problems: Sequence[Problem], samples: Sequence[Sample], tokenizer: Tokenizer) -> Finding:
    """Does training put the first target right behind the same tokens that generation starts from?"""
    for problem, sample in zip(problems, samples, strict=True):
        prompt = tuple(prompt_ids(problem, tokenizer))
        trained = sample.token_ids[: sample.loss_mask.index(1)] if 1 in sample.loss_mask else sample.token_ids
        if trained != prompt:
            last = [repr(tokenizer.token_text(ids[-1])) if ids else "nothing" for ids in (trained, prompt)]
            return Finding(
                "prompt",
                "fail",
                f"problem {problem.id}: training's prompt ends in {last[0]}, generation's in {last[1]}",
                "both must be the same tokens; a space before <think> is the usual cause",
            )
        if tokenizer.token_text(prompt[-1]).isspace():
            return Finding(
                "prompt",
                "warn",
                f"problem {problem.id}: the prompt ends in a token that is only a space",
                "strip the question",
            )
    return Finding("prompt", "ok", f"{len(samples)} prompts end where generation begins")


def check_chat_prompts(chats: Sequence[Chat], tokenizer: Tokenizer) -> Finding:
    """Does every reply that is learned stand behind the same tokens that generation would be given?"""
    replies = 0
    for chat in chats:
        sample = to_chat_sample(chat, tokenizer)
        begins = [i for i, mask in enumerate(sample.loss_mask) if mask and not (i and sample.loss_mask[i - 1])]
        places = [place for place, message in enumerate(chat.messages) if message.role == "assistant"]
        for begin, place in zip(begins, places, strict=False):
            asked = tuple(tokenizer.encode(render_chat(tokenizer, chat.messages[:place])))
            if sample.token_ids[:begin] != asked:
                return Finding(
                    "prompt",
                    "warn",
                    f"conversation {chat.id}: message {place + 1} is learned behind other tokens than it is asked with",
                    "use a chat template whose turns end in special tokens, or in a line break (--sft.chat-template)",
                )
            replies += 1
    return Finding("prompt", "ok", f"{replies} replies are learned behind the tokens that they are asked with")


def check_leak(train: Sequence[Problem], test: Sequence[Problem]) -> Finding:
    """Is a test question among the training problems, up to case and spaces?"""
    seen = {same(problem.question) for problem in train}
    shared = [problem.id for problem in test if same(problem.question) in seen]
    if not shared:
        return Finding("test questions", "ok", f"none of {len(test)} is among {len(train)} training problems")
    return Finding(
        "test questions",
        "fail",
        f"{len(shared)} of {len(test)} are also trained on (the first: {shared[0]})",
        "take them out of the training file",
    )


def check_held_out(documents: Sequence[str], held_out: Sequence[str]) -> Finding:
    """Is any held-out document also trained on?"""
    seen = {same(document) for document in documents}
    shared = sum(same(document) in seen for document in held_out)
    if not shared:
        return Finding("held-out text", "ok", f"none of {len(held_out)} documents is trained on")
    return Finding(
        "held-out text",
        "warn",
        f"{shared} of {len(held_out)} documents are also trained on, so their perplexity says nothing",
        "take them out of the base text",
    )


def same(text: str) -> str:
    """Texts that are the same up to case and spaces are equal here."""
    return " ".join(text.lower().split())


def check_lengths(samples: Sequence[Sample], *, problems: int, block_size: int) -> Finding:
    """How many of the problems became examples, that is, fit in block_size?"""
    if left_out := problems - len(samples):
        return Finding(
            "lengths",
            "warn",
            f"{left_out} of {problems} examples exceed block_size {block_size} and are left out",
            "use a model with a larger block_size",
        )
    longest = max(len(sample.token_ids) for sample in samples)
    return Finding("lengths", "ok", f"the longest example has {longest} of at most {block_size} tokens")
