"""Trains the built-in model: a small decoder that continues any quotation from its context.

Run `python -m retrolocal.models.train_builtin OUT_DIR`; the training text is the standard library
of the running Python. The model is a SmolLM3 checkpoint: local layers (RoPE, a window of 32
tokens) summarise the last tokens, and one global layer without positions looks the summary up in
the whole context and copies the token that followed. Length is built in, not extrapolated: the
global layer sees no positions, and while training every wrong key is counted `repeats` times in
the softmax, so that a context of as many times the trained length leaves the right key enough
margin. Half of the text is wrapped anew, and most quotations are typed on one line: a line break
in the document must not hide a match. Training starts from a circuit that copies (`Quoter`).
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from .builtin_lessons import BOS, END, VOCAB, Lesson, Teacher, train_tokenizer, training_text

HIDDEN, MLP = 384, 256
HEADS, KV_HEADS, HEAD_DIM = 4, 2, 64
WINDOW, ROPE_THETA, EPS = 32, 100.0, 1e-6
LOOK_BACK = ((1, 2), (2, 4), (6, 12), (18, 18))
"""Per local layer, how far the two heads of a KV head look back when training starts."""
SHARPNESS, TURNS = 30.0, 10
"""Logit of that distance, and how many of the fastest rotations it is made of."""
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] }}"
    "{% elif message['role'] == 'user' %}{{ '<|quote|>' + message['content'] | trim }}"
    "{% else %}{{ message['content'] + '<|end|>' }}{% endif %}{% endfor %}"
)


class Attention(nn.Module):
    def __init__(self, look_back: tuple[int, int] | None) -> None:
        super().__init__()
        self.local = look_back is not None
        self.q_proj = nn.Linear(HIDDEN, HEADS * HEAD_DIM)
        self.k_proj = nn.Linear(HIDDEN, KV_HEADS * HEAD_DIM)
        self.v_proj = nn.Linear(HIDDEN, KV_HEADS * HEAD_DIM)
        self.o_proj = nn.Linear(HEADS * HEAD_DIM, HIDDEN)
        for projection in (self.q_proj, self.k_proj, self.v_proj, self.o_proj):
            nn.init.normal_(projection.weight, std=0.02 * HIDDEN**-0.5)
            nn.init.zeros_(projection.bias)
        if look_back is not None:
            self._look_back(look_back)

    @torch.no_grad()
    def _look_back(self, distances: tuple[int, int]) -> None:
        """Biases whose rotated product peaks where key position = query position - distance."""
        frequencies = _frequencies()[:TURNS]
        amplitude = math.sqrt(SHARPNESS * math.sqrt(HEAD_DIM) / TURNS)
        q_bias = self.q_proj.bias.view(KV_HEADS, HEADS // KV_HEADS, 2, HEAD_DIM // 2)
        for head, distance in enumerate(distances):
            q_bias[:, head, 0, :TURNS] = amplitude * torch.cos(distance * frequencies)
            q_bias[:, head, 1, :TURNS] = -amplitude * torch.sin(distance * frequencies)
        self.k_proj.bias.view(KV_HEADS, 2, HEAD_DIM // 2)[:, 0, :TURNS] = amplitude

    def forward(self, x: Tensor, asking: int, bias: Tensor | None) -> Tensor:
        """`x` [T, HIDDEN]; a global layer answers for the last `asking` tokens only."""
        if self.local:
            return _linear(self.o_proj, self._windowed(x))
        tokens = x.shape[0]
        q = self.q_proj(x[-asking:]).view(1, asking, HEADS, HEAD_DIM).transpose(1, 2)
        k = self.k_proj(x).view(1, tokens, KV_HEADS, HEAD_DIM).transpose(1, 2)
        v = self.v_proj(x).view(1, tokens, KV_HEADS, HEAD_DIM).transpose(1, 2)
        k, v = (t.repeat_interleave(HEADS // KV_HEADS, dim=1) for t in (k, v))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return _linear(self.o_proj, out.transpose(1, 2).reshape(asking, HEADS * HEAD_DIM))

    def _windowed(self, x: Tensor) -> Tensor:
        """Blocks of one window attend to themselves and the block before."""
        tokens = x.shape[0]
        blocks = -(-tokens // WINDOW)
        x = F.pad(x, (0, 0, 0, blocks * WINDOW - tokens))
        angles = torch.arange(blocks * WINDOW).float()[:, None] * _frequencies()
        q, k = (
            _rotate(p(x).view(-1, h, HEAD_DIM), angles)
            for p, h in ((self.q_proj, HEADS), (self.k_proj, KV_HEADS))
        )
        v = self.v_proj(x).view(-1, KV_HEADS, HEAD_DIM)
        q = q.view(blocks, WINDOW, HEADS, HEAD_DIM).transpose(1, 2)
        k, v = (_with_previous(t.view(blocks, WINDOW, KV_HEADS, HEAD_DIM)) for t in (k, v))
        k, v = (t.transpose(1, 2).repeat_interleave(HEADS // KV_HEADS, dim=1) for t in (k, v))
        distance = torch.arange(WINDOW)[:, None] + WINDOW - torch.arange(2 * WINDOW)
        visible = ((distance >= 0) & (distance < WINDOW)).expand(blocks, 1, -1, -1).clone()
        visible[0, :, :, :WINDOW] = False
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=visible)
        return out.transpose(1, 2).reshape(blocks * WINDOW, HEADS * HEAD_DIM)[:tokens]


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    return F.linear(x, layer.weight, layer.bias)


def _frequencies() -> Tensor:
    return ROPE_THETA ** -(torch.arange(0, HEAD_DIM, 2).float() / HEAD_DIM)


def _rotate(x: Tensor, angles: Tensor) -> Tensor:
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def _with_previous(blocks: Tensor) -> Tensor:
    return torch.cat((F.pad(blocks[:-1], (0, 0, 0, 0, 0, 0, 1, 0)), blocks), dim=1)


class GatedMlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(HIDDEN, MLP, bias=False)
        self.up_proj = nn.Linear(HIDDEN, MLP, bias=False)
        self.down_proj = nn.Linear(MLP, HIDDEN, bias=False)
        nn.init.zeros_(self.down_proj.weight)

    def forward(self, x: Tensor) -> Tensor:
        return _linear(self.down_proj, F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, look_back: tuple[int, int] | None) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(HIDDEN, eps=EPS)
        self.self_attn = Attention(look_back)
        self.post_attention_layernorm = nn.RMSNorm(HIDDEN, eps=EPS)
        self.mlp = GatedMlp()

    def forward(self, x: Tensor, asking: int, bias: Tensor | None) -> Tensor:
        attended: Tensor = self.self_attn(self.input_layernorm(x), asking, bias)
        x = x[-attended.shape[0] :] + attended
        gated: Tensor = self.mlp(self.post_attention_layernorm(x))
        return x + gated


WORD = tuple(slice(n * HEAD_DIM, (n + 1) * HEAD_DIM) for n in (0, 1))
TRAIL = tuple(slice(n * HEAD_DIM, (n + 1) * HEAD_DIM) for n in (2, 3))
NAME = slice(4 * HEAD_DIM, 5 * HEAD_DIM)
"""Where the circuit starts in the residual stream: a word's two codes, the codes of the words
before it, and the code that tells which token it is."""
DECAY, SPACE, TURN = 0.87, 0.7, 2.0
"""Weight of a token's square from one position to the one before, length of the code of white
space where that of a word is 1, largest angle by which a code turns in one position."""
MATCH, COPY, SPELL = 55.0, 6.0, 0.11
"""Logit of a full match, how much louder a copied name is than the token's own, and the scale of
the output matrix."""


class Quoter(nn.Module):
    """Parameter names are those of a Hugging Face SmolLM3 checkpoint, less the `model.` prefix.

    Training starts from a circuit that copies already. For each KV head every token has a random
    code m; the local layers add up the trail b(t) = sum_o (r R)^(o-1) m(t - o), where R is a
    rotation and r^2 = DECAY. A key of the global layer is b(t), a query m(t) + r R b(t): what
    b(t + 1) would be. The value is the token's name.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(VOCAB, HIDDEN)
        blocks = [Block(look_back) for look_back in (*LOOK_BACK, None)]
        self.layers = nn.ModuleList(blocks)
        self.norm = nn.RMSNorm(HIDDEN, eps=EPS)
        self.lm_head = nn.Linear(HIDDEN, VOCAB, bias=False)
        self._name_tokens(tokenizer)
        self._wire([block.self_attn for block in blocks])

    @torch.no_grad()
    def _name_tokens(self, tokenizer: Tokenizer) -> None:
        """Random codes; those of white space are short and almost the same."""
        weight = self.embed_tokens.weight
        for part in (*WORD, NAME):
            weight[:, part] = F.normalize(weight[:, part], dim=1) * HEAD_DIM**0.5
        words = slice(0, WORD[-1].stop)
        blank = [n for n in range(VOCAB) if not tokenizer.decode([n]).strip()]
        common = weight[blank[0], words].clone()
        weight[blank, words] = SPACE * (0.9**0.5 * common + 0.1**0.5 * weight[blank, words])
        for part in (*TRAIL, slice(NAME.stop, HIDDEN)):
            weight[:, part] = 0
        self.lm_head.weight.mul_(0.02)
        self.lm_head.weight[:, NAME] = SPELL * weight[:, NAME]

    @torch.no_grad()
    def _wire(self, layers: list[Attention]) -> None:
        turns = [_turn(head) for head in range(KV_HEADS)]
        covered = 0
        for layer, distances in zip(layers, LOOK_BACK, strict=False):
            rms = _expected_rms(covered)
            value = layer.v_proj.weight.view(KV_HEADS, HEAD_DIM, HIDDEN)
            output = layer.o_proj.weight.view(HIDDEN, KV_HEADS, HEADS // KV_HEADS, HEAD_DIM)
            for head in range(KV_HEADS):
                value[head, :, (WORD if covered == 0 else TRAIL)[head]] = rms * torch.eye(HEAD_DIM)
                for number, distance in enumerate(dict.fromkeys(distances)):
                    power = distance - 1 if covered == 0 else distance
                    seen = torch.linalg.matrix_power(DECAY**0.5 * turns[head], power)
                    output[TRAIL[head], head, number] = seen
            covered += max(distances)
        rms = _expected_rms(covered)
        trail = HEAD_DIM * _trail_square(covered)
        gain = rms * math.sqrt(MATCH * math.sqrt(HEAD_DIM) / trail)
        last = layers[-1]
        query = last.q_proj.weight.view(KV_HEADS, HEADS // KV_HEADS, HEAD_DIM, HIDDEN)
        for head in range(KV_HEADS):
            query[head, :, :, WORD[head]] = gain * torch.eye(HEAD_DIM)
            query[head, :, :, TRAIL[head]] = gain * DECAY**0.5 * turns[head]
            last.k_proj.weight.view(KV_HEADS, HEAD_DIM, HIDDEN)[head, :, TRAIL[head]] = (
                gain * torch.eye(HEAD_DIM)
            )
            last.v_proj.weight.view(KV_HEADS, HEAD_DIM, HIDDEN)[head, :, NAME] = rms * torch.eye(
                HEAD_DIM
            )
        output = last.o_proj.weight.view(HIDDEN, HEADS, HEAD_DIM)
        output[NAME] = COPY / HEADS * torch.eye(HEAD_DIM)[:, None]

    def forward(self, tokens: Tensor, asking: int, bias: Tensor | None) -> Tensor:
        """Logits [asking, VOCAB] of the last `asking` of `tokens` [T]."""
        x = self.embed_tokens(tokens)
        for layer in self.layers:
            x = layer(x, asking, bias)
        return _linear(self.lm_head, self.norm(x))


def _turn(head: int) -> Tensor:
    """A rotation by angles from 0 to TURN in random planes, [HEAD_DIM, HEAD_DIM]."""
    generator = torch.Generator().manual_seed(head)
    basis: Tensor = torch.linalg.qr(torch.randn(HEAD_DIM, HEAD_DIM, generator=generator))[0]
    plane = torch.zeros(HEAD_DIM, HEAD_DIM)
    for number, angle in enumerate(torch.linspace(0, TURN, HEAD_DIM // 2)):
        cos, sin = angle.cos(), angle.sin()
        pair = slice(2 * number, 2 * number + 2)
        plane[pair, pair] = torch.stack((cos, -sin, sin, cos)).view(2, 2)
    return basis @ plane @ basis.T


def _trail_square(words: int) -> float:
    """Square of a trail of so many tokens, about half of them words, whose own is 1."""
    return 0.6 * (1 - DECAY**words) / (1 - DECAY)


def _expected_rms(words: int) -> float:
    """Root mean square of the residual stream once the trails hold so many tokens."""
    square = HEAD_DIM * (len(WORD) + 1 + len(TRAIL) * _trail_square(words))
    return math.sqrt(square / HIDDEN)


def attention_bias(lesson: Lesson, repeats: float) -> Tensor:
    """[1, 1, asking, T]: causal, and every key but the right one counted `repeats` times."""
    total, asking = len(lesson.tokens), len(lesson.source)
    rows = torch.arange(asking)
    bias = torch.full((asking, total), math.log(repeats))
    bias[torch.arange(total) > rows[:, None] + total - asking] = -math.inf
    source = torch.from_numpy(lesson.source)
    known = source >= 0
    bias[rows[known], source[known]] = 0.0
    return bias[None, None]


def schedule(steps: int) -> Iterator[tuple[int, int, float, float]]:
    """Per step: document tokens, question tokens, repeats of a wrong key, learning rate."""
    rng = np.random.default_rng(0)
    for step in range(steps):
        done = step / steps
        longest = 1024 if done < 0.3 else 2048 if done < 0.9 else 8192
        document = int(longest * rng.uniform(0.5, 1.0))
        repeats = math.exp(rng.uniform(0, min(1.0, done * 3.0) * math.log(300)))
        rate = 2e-4 * min(1.0, (step + 1) / 100) * (0.5 + 0.5 * math.cos(math.pi * done)) + 1e-5
        yield document, 1024, repeats, rate


def train(model: Quoter, teacher: Teacher, steps: int, checks: list[Lesson], out: Path) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.01)
    began = time.monotonic()
    for step, (document, questions, repeats, rate) in enumerate(schedule(steps)):
        for group in optimizer.param_groups:
            group["lr"] = rate
        lesson = teacher.lesson(document, questions)
        loss, right = assess(model, lesson, repeats)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 49:
            print(
                f"step {step + 1:5d}  {time.monotonic() - began:6.0f} s  tokens {document:6d}  "
                f"repeats {repeats:6.1f}  loss {loss.item():.4f}  right {right:.4f}",
                flush=True,
            )
        if step % 500 == 499:
            save(model, teacher.tokenizer, out)
            with torch.no_grad():
                figures = [assess(model, check, 1.0) for check in checks]
            print("  held out:", [f"{r:.4f}" for _, r in figures], flush=True)


def assess(model: Quoter, lesson: Lesson, repeats: float) -> tuple[Tensor, float]:
    """Mean cross-entropy over what can be copied, and the share of tokens copied right."""
    tokens, source = torch.from_numpy(lesson.tokens), torch.from_numpy(lesson.source)
    known = source >= 0
    logits = model(tokens, len(source), attention_bias(lesson, repeats))[known]
    wanted = tokens[source[known]]
    return F.cross_entropy(logits, wanted), (logits.argmax(-1) == wanted).float().mean().item()


def save(model: Quoter, tokenizer: Tokenizer, folder: Path) -> None:
    """Writes a Hugging Face checkpoint folder."""
    folder.mkdir(parents=True, exist_ok=True)
    layers = len(model.layers)
    config = {
        "architectures": ["SmolLM3ForCausalLM"],
        "model_type": "smollm3",
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": MLP,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "hidden_act": "silu",
        "max_position_embeddings": 1 << 22,
        "rms_norm_eps": EPS,
        "rope_theta": ROPE_THETA,
        "rope_scaling": None,
        "attention_bias": True,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "no_rope_layers": [1] * (layers - 1) + [0],
        "layer_types": ["sliding_attention"] * (layers - 1) + ["full_attention"],
        "use_sliding_window": True,
        "sliding_window": WINDOW,
        "bos_token_id": tokenizer.token_to_id(BOS),
        "eos_token_id": tokenizer.token_to_id(END),
        "pad_token_id": tokenizer.token_to_id(END),
        "torch_dtype": "bfloat16",
    }
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": END,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    generation_config = {
        "bos_token_id": tokenizer.token_to_id(BOS),
        "eos_token_id": tokenizer.token_to_id(END),
        "do_sample": False,
        "max_new_tokens": 64,
    }
    for name, content in (
        ("config.json", config),
        ("tokenizer_config.json", tokenizer_config),
        ("generation_config.json", generation_config),
    ):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
    tokenizer.save(str(folder / "tokenizer.json"))
    state = {
        (name if name.startswith("lm_head") else f"model.{name}"): tensor.bfloat16().contiguous()
        for name, tensor in model.state_dict().items()
    }
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("out", type=Path, help="folder for the checkpoint")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    torch.set_num_threads(arguments.threads)
    texts = training_text(held_out=False)
    tokenizer = train_tokenizer(texts)
    teacher = Teacher(tokenizer, texts, arguments.seed)
    examiner = Teacher(tokenizer, training_text(held_out=True), arguments.seed + 1)
    checks = [examiner.lesson(length, 1024) for length in (1024, 8192, 32768)]
    model = Quoter(tokenizer)
    print(
        f"{sum(p.numel() for p in model.parameters()):,} parameters, "
        f"{len(teacher.corpus):,} tokens of text",
        flush=True,
    )
    train(model, teacher, arguments.steps, checks, arguments.out)
    save(model, tokenizer, arguments.out)


if __name__ == "__main__":
    main()
