"""Labels of samples: class names, the rule of one label, and the labels of an index."""
