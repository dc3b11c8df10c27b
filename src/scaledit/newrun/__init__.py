"""A run of your own images, from a folder to samples: what `scaledit new` does.

    folder --look_at--> Facts --rules--> Draft (every choice with its reason)
    Draft --timing: measured steps--> Plan: steps, and seconds of each stage
    Plan --recipe--> TOML, whose comments are the reasons
    recipes on disk --stages--> autoencoder, latents, model, samples beside real pictures; resumable

`rules` decides, and nothing else does.
"""
