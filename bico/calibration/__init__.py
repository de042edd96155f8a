"""What the samples leave behind: signals at sites, their cross-covariances, gradients, and which samples are drawn."""
