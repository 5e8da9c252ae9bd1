"""Saliency-guided patch transfer (SPT, AAAI 2024): where the person is, who lends an occlusion to
whom, and the mixed picture."""
