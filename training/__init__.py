"""How is a model trained? Settings, the loop, the stages, the pipeline, the optimizer, losses."""
