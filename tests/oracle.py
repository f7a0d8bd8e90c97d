"""Effects by their definition, slowly, from the open_clip model itself and not from its view.

Second-order: for each later block on its own, the tangent that an MLP layer adds at the block's
`ln_1` input, with attention and LayerNorm scales frozen, goes to the class token's attention
output, from there straight to `ln_post`, and never back into the residual stream.
"""

import torch
from torch.func import jvp


class Run:
    """One forward pass: what blocks, activations and `ln_post` saw, batch first."""

    def __init__(self, model, images):
        self.tower = model.visual
        self.blocks = self.tower.transformer.resblocks
        self.streams, self.activations, self.writes = [], [], []
        handles = [self.tower.ln_post.register_forward_pre_hook(self._see_post)]
        for block in self.blocks:
            handles.append(block.ln_1.register_forward_pre_hook(self._see(self.streams)))
            handles.append(block.mlp.c_proj.register_forward_pre_hook(self._see(self.activations)))
            handles.append(block.ls_2.register_forward_hook(self._see_write))
        with torch.no_grad():
            self.representation = self.tower(images)
        for handle in handles:
            handle.remove()

    def _see(self, into):
        return lambda module, inputs: into.append(inputs[0])

    def _see_write(self, module, inputs, output):
        self.writes.append(output)

    def _see_post(self, module, inputs):
        self.class_token = inputs[0][:, 0] if inputs[0].dim() == 3 else inputs[0]

    def neuron_write(self, layer, neuron):
        """[images, tokens, width]: what a neuron adds to the residual stream."""
        block = self.blocks[layer]
        row = block.mlp.c_proj.weight[:, neuron]
        row = block.ls_2.gamma * row if hasattr(block.ls_2, "gamma") else row
        return self.activations[layer][:, :, neuron, None] * row.detach()


def frozen_norm(norm, states):
    """The LayerNorm as a function, with the scale it had at `states`."""
    sigma = (states.var(dim=-1, correction=0, keepdim=True) + norm.eps).sqrt()
    return lambda x: (x - x.mean(dim=-1, keepdim=True)) / sigma * norm.weight + norm.bias


def split_heads(states, heads):
    return states.unflatten(-1, (heads, -1)).transpose(1, 2)


def class_attention(block, states):
    """[images, heads, tokens]: what the class token attends to, with all keys computed."""
    normalised, attention = block.ln_1(states), block.attn
    projected = normalised @ attention.in_proj_weight.T + attention.in_proj_bias
    query, key, _ = (split_heads(x, attention.num_heads) for x in projected.chunk(3, dim=-1))
    return (query @ key.mT / query.shape[-1] ** 0.5).softmax(dim=-1)[:, :, 0]


def frozen_attention(block, states):
    """The class token's attention output as a function of the block's input."""
    norm, attention = frozen_norm(block.ln_1, states), block.attn
    attended = class_attention(block, states)
    to_value, bias = attention.in_proj_weight.chunk(3)[2], attention.in_proj_bias.chunk(3)[2]

    def output(x):
        value = split_heads(norm(x) @ to_value.T + bias, attention.num_heads)
        mixed = torch.einsum("bht,bhte->bhe", attended, value)
        return block.ls_1(attention.out_proj(mixed.flatten(1)))

    return output


def frozen_output(run):
    """The normalised embedding as a function of the class token, with r's norm frozen."""
    norm = frozen_norm(run.tower.ln_post, run.class_token)
    length = run.representation.norm(dim=-1, keepdim=True)
    return lambda x: norm(x) @ run.tower.proj / length


@torch.no_grad()
def second_order(run, layer, write):
    """[images, dim]: the second-order effect of `write`, [images, tokens, width], of an MLP."""
    to_embedding = frozen_output(run)
    total = 0
    for j in range(layer + 1, len(run.blocks)):
        attention = frozen_attention(run.blocks[j], run.streams[j])
        base = run.class_token - attention(run.streams[j])

        def embedding(x, attention=attention, base=base):
            return to_embedding(base + attention(x))

        total = total + jvp(embedding, (run.streams[j],), (write,))[1]
    return total


@torch.no_grad()
def direct(run, write):
    """[images, dim]: what reaches the output straight from the class token."""
    return jvp(frozen_output(run), (run.class_token,), (write[:, 0],))[1]


@torch.no_grad()
def indirect(run, images, layer, neuron, mean):
    """[images, dim]: run again with one neuron at its mean at every token."""

    def ablate(module, inputs):
        states = inputs[0].clone()
        states[:, :, neuron] = mean[:, neuron]
        return (states,)

    handle = run.blocks[layer].mlp.c_proj.register_forward_pre_hook(ablate)
    ablated = run.tower(images)
    handle.remove()
    return (run.representation - ablated) / run.representation.norm(dim=-1, keepdim=True)
