"""Persons in whole scenes: detectors, tracklets, and the crops that are searched."""

from dpmpp_core.detection.boxes import Boxes, Detections, Detector, overlap
from dpmpp_core.detection.cropping import CropOptions, CropWriter, crop_picture, crop_video
from dpmpp_core.detection.motion import MotionDetector
from dpmpp_core.detection.onnx_detector import OnnxDetector
from dpmpp_core.detection.tracking import Tracker
from dpmpp_core.detection.video import VIDEO_NAME, Frame, Video

__all__ = [
    "VIDEO_NAME",
    "Boxes",
    "CropOptions",
    "CropWriter",
    "Detections",
    "Detector",
    "Frame",
    "MotionDetector",
    "OnnxDetector",
    "Tracker",
    "Video",
    "crop_picture",
    "crop_video",
    "overlap",
]
