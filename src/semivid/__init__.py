"""semivid: semi-supervised semantic segmentation from video, one pipeline and five methods' worth of research code."""
