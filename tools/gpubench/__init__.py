"""What every strategy needs and costs on a GPU: the bench behind `tools/gpu-bench`.

architectures   random-weight models of the true shapes, written as .nemo files
cells           what is measured, and in which order
measuring       one worker measured over its wire, while nobody else uses the card
bare            NeMo by itself in a process of its own, loaded as its examples load it
tables          results -> the tables of the terminal and of asrd/docs/gpu.md (pure)
"""
