"""`street`: an embedded renderer of driving video with exact labels, depth, optical flow, poses and intrinsics."""
