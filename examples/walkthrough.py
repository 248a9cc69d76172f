"""A whole session in the cells of a notebook: teach, extract, distil, analyse, and a student at work."""

# ruff: noqa: T201

# %% [markdown]
# # From a teacher to a student, and what was transferred
#
# A teacher learns handwritten digits, says once what it thinks of six augmented views of every image, and four students
# learn from what it said. Then the exact kernel transfer loss of each, an analysis of our own on the cache, and a
# student that is put to use. It takes about two minutes on two cores; run again, it gives what is there already.

# %%
import importlib.util
from pathlib import Path

import numpy as np
import torch

import kdtool
from kdtool.methods import KD, KDA

FOLDER = Path("walkthrough")
TEACHER, STUDENT = "resnet14", "resnet8"
EPOCHS, BATCH, VIEWS = 8, 64, 6

# %% [markdown]
# ## The teacher
#
# Every stage is told what is wanted by a frozen dataclass, and works in a workspace: a folder with the teacher, its
# cache and the runs. What `teach` was told of the data is the default of the stages behind it.

# %%
recipe = kdtool.Recipe(epochs=EPOCHS, batch=BATCH)
work = kdtool.Workspace.open(FOLDER)
taught = kdtool.teach(work, kdtool.TeachConfig("digits", TEACHER, recipe))
print(f"teacher: {taught['test_accuracy']['last']:.1f} % of the test images")

# %% [markdown]
# ## The cache
#
# The only stage that runs the teacher. Named methods and students store what they need; logits and the vector before
# the classifier are always there.

# %%
asked = kdtool.ExtractConfig(methods=(KD(), KDA()), students=(STUDENT,), views=VIEWS)
kdtool.extract(work.cache, kdtool.prepare(work, asked))
cache = kdtool.open_cache(work.cache)
for key in cache.contents:
    print(f"{key}: {cache.views(key)} views of {cache.array('train', key, 'values').shape[1:]}")

# %% [markdown]
# ## Students
#
# All from one cache: on labels alone, by KD, and by KDA with two weights. A run's folder is named after what it is.

# %%
students = {
    "labels alone": (),
    "KD": (KD(temperature=4.0),),
    "KDA, weight 0.01": (KDA(layers=("before_fc",), weight=0.01),),
    "KDA, weight 0.04": (KDA(layers=("before_fc",), weight=0.04),),
}
runs = {
    title: kdtool.distill(work, kdtool.DistillConfig(STUDENT, methods, recipe)) for title, methods in students.items()
}
folders = {title: work.runs / run["name"] for title, run in runs.items()}

# %% [markdown]
# ## What was transferred
#
# The kernel transfer loss ||K_T - K_S|| / ||K_T|| over all training images, exact though no n x n matrix is built.

# %%
gaps = kdtool.gram_gap(work, kdtool.Asked(tuple(folders.values()), layers=("before_fc",)))
losses = {gap["run"]: gap["loss"] for gap in gaps}
for title, run in runs.items():
    print(f"{title:>16}: {run['test_accuracy']['last']:5.1f} %, transfer loss {losses[run['name']]:.4f}")

# %% [markdown]
# ## An analysis of our own
#
# The cache gives numpy arrays: here the teacher's features of view 0, (n, d), and the labels, (n,). Which two digits
# are closest to each other in the teacher's eyes? And how far does a feature move from one crop of an image to another,
# measured by the distance between classes?

# %%
features = cache.array("train", "before_fc", "values").read(view=0).astype(np.float64)
labels = cache.labels("train")
means = np.stack([features[labels == digit].mean(axis=0) for digit in range(10)])
distances = np.linalg.norm(means[:, None] - means[None], axis=2)
apart = distances[np.triu_indices(10, k=1)]
first, second = np.argwhere(np.triu(distances == apart.min(), k=1))[0]
print(f"closest in the teacher's eyes: {first} and {second}")

other = cache.array("train", "before_fc", "values").read(view=1).astype(np.float64)
moved = np.linalg.norm(features - other, axis=1).mean()
print(f"another crop moves a feature by {moved / apart.mean():.2f} of the distance between two classes")

# %% [markdown]
# With matplotlib, a picture of it, and the report of all runs, one HTML file.

# %%
if importlib.util.find_spec("matplotlib"):
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    left.set(
        title="distance of class means (teacher)", xlabel="digit", ylabel="digit", xticks=range(10), yticks=range(10)
    )
    figure.colorbar(left.imshow(distances, cmap="viridis"), ax=left)
    right.barh(list(runs), [losses[run["name"]] for run in runs.values()])
    right.set(title="kernel transfer loss, before_fc")
    right.invert_yaxis()
    figure.savefig(FOLDER / "transfer.png")
    print(f"wrote {FOLDER / 'transfer.png'} and {kdtool.write_report([work.runs], FOLDER / 'report.html')}")

# %% [markdown]
# ## A student at work
#
# A trained network by the file of its weights: pixels in, logits out, with the normalisation that it was trained with.

# %%
student = kdtool.load_network(folders["KD"] / "student.safetensors")
test = kdtool.data.load("digits").test  # pixels (360, 3, 32, 32) of uint8, labels (360,)
with torch.no_grad():
    answers = student(torch.from_numpy(test.images)).argmax(dim=1).numpy()
print(f"{100 * (answers == test.labels).mean():.1f} % right; the first ten: {answers[:10]}, labels {test.labels[:10]}")

# %% [markdown]
# The folder is that of the command line too: `kdtool report walkthrough/runs`, or in the folder itself
# `kdtool distill --method kda --layer after_fc`. All names of the package: `help(kdtool)`; more in docs/python.md.
