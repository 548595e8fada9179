"""``python -m adamod_fused demo``: one language model on real text, three optimizers, one figure.

What each module does: ``settings`` the options, ``text`` the data, ``model`` the Transformer,
``train`` one training run, ``compare`` bit-for-bit equality, ``rates`` the learning rates that
AdaMod used, ``plot`` the figure, ``style`` how figures look, ``report`` the table and the JSON
record, ``console`` what is seen while it runs, ``extras`` the optional dependencies, ``cli`` the
order of work.
"""
