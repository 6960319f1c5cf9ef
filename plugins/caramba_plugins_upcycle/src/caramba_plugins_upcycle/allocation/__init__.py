"""Dividing a budget of cached bytes among layers by what each way to cache a layer costs in likelihood."""
