"""Dividing a budget of cached values among layers by what each layer's sizes cost in likelihood."""
