"""Converting a pretrained model: calibration, transplants, blockwise and global distillation."""
