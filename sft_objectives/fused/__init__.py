"""The output head that computes losses: gradients over chunks of rows, kernels, the hook in a model. No torch here."""
