"""PixelVAE: a VAE whose decoder is a Gated PixelCNN.

    p(z) = N(0, I)      p(x | z) = prod_i p(x_i | x_<i, f(z)_i)      q(z | x) = N(m(x), s(x)^2)

f makes features of every pixel of z, which each layer of the PixelCNN is given at that pixel. The pixels are not
independent given z: the PixelCNN renders strokes and textures, and z is left with what they do not see, which is the
less the farther they see. So far that z says nothing, KL(q | p) = 0, is a local optimum: free bits or a warm-up of the
rate (`beta_vae`), and a PixelCNN of few layers, keep away from it.

There is no `decode`: the mean of p(x | z) has no closed form, and is no image that the model would draw.

References: Gulrajani et al. 2017, arXiv 1611.05013, one level of latents; the conditional PixelCNN as a decoder: van
den Oord et al. 2016, arXiv 1606.05328, section 2.4.
"""

from __future__ import annotations

from collections.abc import Sequence

from dgm_jax.models import outputs
from dgm_jax.models.autoregressive import gated_pixelcnn
from dgm_jax.models.images import image
from dgm_jax.models.latent import likelihoods, posteriors, priors, vae
from dgm_jax.nets.precision import mixed
from dgm_jax.types import Model


def make(
    *,
    shape: tuple[int, ...],
    latent: int = 50,
    hidden: Sequence[int] = (200, 200),
    net: str = "mlp",
    blocks: int = 0,
    activation: str = "relu",
    context: int = 16,
    features: int = 32,
    layers: int = 3,
    first: int = 5,
    kernel: int = 3,
    head: int = 64,
    output: str = "bernoulli",
    components: int = 5,
    levels: int = 256,
    refine: int = 0,
    refine_rate: float = 0.5,
    classes: int = 0,
    bf16: bool = False,
) -> Model:
    """A PixelVAE; its params are {"encoder", "decoder", "model"}, the last the PixelCNN's, and two that are empty.

    Args:
        shape: of an image, (H, W, C).
        latent, hidden, net, blocks, activation: of m, s and f, as in `vae.make`.
        context: features of every pixel that z is decoded to.
        features, layers, first, kernel, head: of the PixelCNN, as in `gated_pixelcnn.make`.
        output: distribution of a channel of a pixel, one of `outputs.OUTPUTS`.
        components: of an output that is a mixture.
        levels: of an output of grey levels.
        refine, refine_rate: of the posterior, as in `vae.make`.
        classes: 0, or the number of labels in batch["cond"] that m, s and f read.
        bf16: the nets compute in bfloat16; parameters and likelihoods stay float32.

    Raises:
        ValueError: no image, or as `vae.make` says.
    """
    height, width, _ = image(shape)
    of_pixel = (height, width, context)
    pixels = gated_pixelcnn.make(
        shape=shape,
        features=features,
        layers=layers,
        first=first,
        kernel=kernel,
        head=head,
        output=output,
        components=components,
        levels=levels,
        cond_map=context,
        bf16=bf16,
    )
    p, q = priors.normal(latent), posteriors.diagonal(latent)
    encoder = mixed(vae.nets(net, shape, hidden, activation, blocks, q.size, latent, 1)[0], bf16)
    decoder = mixed(vae.nets(net, of_pixel, hidden, activation, blocks, q.size, latent, 1)[1], bf16)
    read = outputs.make(output, components=components, levels=levels).read
    likelihood = likelihoods.of_model(pixels, decoder, of_pixel, read)
    return vae.of(encoder, likelihood, p, q, latent, net == "mlp", refine, refine_rate, classes)
