"""Accuracy on held-out problems: the arithmetic. Who samples and judges is ``control``'s business."""
