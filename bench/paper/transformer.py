"""The Transformer of Vaswani et al.: normalized after each sublayer, one embedding for all."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .tokens import BOS, EOS, PAD


@dataclass(frozen=True)
class TransformerShape:
    """Sizes: ``layers`` in the encoder and as many in the decoder."""

    width: int
    heads: int
    feedforward: int
    layers: int
    dropout: float


class Transformer(nn.Module):
    """Source tokens [B, S] and target tokens [B, T] to logits [B, T, vocabulary]."""

    def __init__(self, shape: TransformerShape, vocabulary: int) -> None:
        super().__init__()
        sizes = (shape.width, shape.heads, shape.feedforward, shape.dropout)
        encoding = nn.TransformerEncoderLayer(*sizes, batch_first=True)
        decoding = nn.TransformerDecoderLayer(*sizes, batch_first=True)
        self.encoder = nn.TransformerEncoder(encoding, shape.layers, enable_nested_tensor=False)
        self.decoder = nn.TransformerDecoder(decoding, shape.layers)
        self.embedding = nn.Embedding(vocabulary, shape.width)
        self.dropout = nn.Dropout(shape.dropout)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        nn.init.normal_(self.embedding.weight, std=shape.width**-0.5)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        return self.decode(self.encode(source), source, target)

    def encode(self, source: Tensor) -> Tensor:
        encoded: Tensor = self.encoder(self._embed(source), src_key_padding_mask=source == PAD)
        return encoded

    def decode(self, encoded: Tensor, source: Tensor, target: Tensor) -> Tensor:
        length = target.shape[1]
        ahead = torch.ones(length, length, dtype=torch.bool, device=target.device).triu(1)
        hidden = self.decoder(
            self._embed(target),
            encoded,
            tgt_mask=ahead,
            memory_key_padding_mask=source == PAD,
        )
        return F.linear(hidden, self.embedding.weight)

    def _embed(self, tokens: Tensor) -> Tensor:
        width = self.embedding.embedding_dim
        embedded = self.embedding(tokens) * math.sqrt(width)
        return self.dropout(embedded + positions(tokens.shape[1], width).to(embedded))

    @torch.no_grad()
    def translate(self, source: Tensor, max_tokens: int) -> list[list[int]]:
        """The likeliest token after the other, until each sentence ends."""
        found: list[list[int]] = [[] for _ in source]
        alive = list(range(len(source)))
        encoded = self.encode(source)
        target = source.new_full((len(source), 1), BOS)
        for _ in range(max_tokens):
            best = self.decode(encoded, source, target)[:, -1].argmax(-1)
            going = best != EOS
            alive = [index for index, goes in zip(alive, going.tolist(), strict=True) if goes]
            for index, token in zip(alive, best[going].tolist(), strict=True):
                found[index].append(token)
            if not alive:
                break
            # Without those that have ended: they would cost as much as the others.
            encoded, source = encoded[going], source[going]
            target = torch.cat([target, best.unsqueeze(1)], dim=1)[going]
        return found


def positions(length: int, width: int) -> Tensor:
    """Sines and cosines [length, width] of section 3.5."""
    place = torch.arange(length).unsqueeze(1)
    rates = torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
    return torch.stack([(place * rates).sin(), (place * rates).cos()], dim=2).flatten(1)
