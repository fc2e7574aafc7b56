"""Synthetic image-text pairs: captions, images by diffusion, and a filter"""
