"""Every digits config, seconds to minutes each: `python -m experiments.digits.run [name ...]` from the checkout."""

from pathlib import Path

from experiments.study import Row, main

ROWS = {
    "fvsbn": Row("fvsbn_digits", "test/nll"),
    "made": Row("made_digits", "test/nll"),
    "nade": Row("nade_digits", "test/nll"),
    "deep_nade": Row("deep_nade_digits", "test/nll"),
    "pixelcnn": Row("pixelcnn_digits", "test/nll"),
    "gated_pixelcnn": Row("gated_pixelcnn_digits", "test/nll"),
    "pixelrnn": Row("pixelrnn_digits", "test/nll"),
    "pixelrnn_row": Row("pixelrnn_row_digits", "test/nll"),
    "multiscale_pixelrnn": Row("multiscale_pixelrnn_digits", "test/nll"),
    "pixelcnnpp": Row("pixelcnnpp_digits", "test/nll_bits_per_dim"),
    "realnvp": Row("realnvp_digits", "test/nll_bits_per_dim"),
    "vae": Row("vae_digits", "test/iwae_1000"),
    "vae_conv": Row("vae_conv_digits", "test/iwae_1000"),
    "pixel_vae": Row("pixel_vae_digits", "test/iwae_1000"),
    "layered_vae": Row("layered_vae_digits", "test/iwae_1000"),
    "top_down_vae": Row("top_down_vae_digits", "test/iwae_1000"),
    "draw": Row("draw_digits", "test/iwae_1000"),
    "sbn": Row("sbn_digits", "test/iwae_1000"),
    "categorical_vae": Row("categorical_vae_digits", "test/iwae_1000"),
    "factor_analysis": Row("factor_analysis_digits", "test/nll_bits_per_dim"),
    "vqvae": Row("vqvae_digits", "test/elbo_bits_per_dim"),
    "gan": Row("gan_digits", "test/frechet_pca_32"),
    "fgan": Row("fgan_digits", "test/frechet_pca_32"),
    "rbm": Row("rbm_digits", "test/nll"),
    "mixture": Row("mixture_digits", "test/nll"),
    "hmm": Row("hmm_digits", "test/nll"),
    "ddpm": Row("ddpm_digits", "test/elbo_bits_per_dim"),
}

if __name__ == "__main__":
    main(Path(__file__).parent, ROWS)
