"""The best settings to sample a trained run with: `scaledit sweep RUN`.

Studies that vary keys of the training are in scaledit.scaling.sweep.
"""
