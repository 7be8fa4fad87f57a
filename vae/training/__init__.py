"""Training: data loader, optimiser steps, checkpoints, metrics log."""
