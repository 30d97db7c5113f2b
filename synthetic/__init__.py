"""The procedural world of the demonstration: scenes, defects, the data sets and the tiny CLIP made from them."""
