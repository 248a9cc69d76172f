"""Exit code 2: options, names, values and configuration files that are not right, each in one line on stderr."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdtool import data as data_sets
from kdtool import files

Typed = Callable[..., Any]

KDA = "distill --method kda"

WRONG = {  # line -> what the message must hold
    "teach": ("--data is missing", "cifar100"),
    "teach --data cifra10": ("'cifra10'", "did you mean 'cifar10'?"),
    "teach --data cifar10 --network resnet9": ("'resnet9'", "did you mean 'resnet8'?"),
    "teach --data cifar10 --student resnt18": ("'resnt18'", "did you mean 'resnet18'?"),
    "teach --data cifar10 --views 0": ("--views is at least 1",),
    "teach --data cifar10 --data-folder nowhere": ("no complete cifar10", "no such folder", "cifar-10-binary.tar.gz"),
    "teach --data cifar10 --network tv:resnet9": ("'resnet9'", "did you mean 'resnet50'?"),
    "teach --data cifar10 --model no_such_file:factory": ("no_such_file", "no module"),
    "teach --data cifar10 --tap stage2": ("--tap 'stage2'", "TAP=PATH"),
    "teach --data cifar10 --crop circle": ("'circle'", "known: pad, resized"),
    "teach --data cifar10 --image-size 0": ("--image-size is at least 1",),
    "teach --data cifar10 --pad -1": ("padding is -1",),
    "teach --data cifar10 --mean 0.5": ("--mean is three numbers",),
    "teach --data cifar10 --mean 125,122,113": ("--mean", "from 0 to 1"),
    "teach --data cifar10 --batchnorm train": ("--batchnorm train", "nothing is kept"),
    "teach --data cifar10 --crop resized --pad 7": ("--pad 7 belongs to --crop pad",),
    "teach --data cifar10 --pad 17": ("--pad 17", "more than half"),
    "teach --data cifar10 --batch 1": ("--batch 1", "2 or more"),
    "teach --data cifar10 --pad 0 --views 3": ("--views 3", "1 to 2"),
    f"{KDA} --batch 1": ("--batch 1", "2 or more"),
    "analyze probe --data cifar10 --whole --batchnorm eval": ("--whole", "--batchnorm"),
    "teach --data cifar10 --std 0,1,1": ("--std is three numbers above 0",),
    "teach --data cifar10 --from nowhere.pt": ("no file of weights",),
    "teach --data cifar10 --as-is": ("--as-is", "--from names none"),
    "teach --data cifar10 --from x.pth --as-is --learning-rate 1": ("--as-is trains nothing", "--learning-rate"),
    "teach --data cifar10 --freeze stage9": ("'stage9'", "stage1"),
    "teach --data cifar10 --batchnorm of": ("'of'", "eval, train"),
    "teach --data cifar10 --head-lr 0": ("--head-lr is above 0",),
    "analyze probe": ("--data is missing", "stl10"),
    "analyze probe --data cifar10 --recipe probe-idc": ("'probe-idc'", "did you mean 'probe-icd'?"),
    "analyze probe --data cifar10 --stage init": ("--stage init", "has one stage"),
    "analyze probe --data cifar10 --batchnorm off": ("'off'", "eval, train"),
    "distill --method kda --tap stage2=stage9": ("'stage2'", "'stage9'", "no module of the network"),
    "distil": ("'distil'", "'distill'"),
    "distill": ("--method is missing", "kdtool methods"),
    "distill --methd kda": ("--methd", "--method"),
    "distill --method kad": ("'kad'", "did you mean 'kd'?"),
    "distill --json --method none --layer before_fc": ("--method none", "do not apply"),
    "distill --method kd --layer before_fc": ("kd has no layers", "--layer"),
    "distill --method none --set weight=1": ("--method none", "do not apply"),
    "distill --method kd --with kd": ("--with kd", "is KD itself"),
    "distill --method kda --with kd --with kd": ("--with kd is named twice",),
    f"{KDA} --with kd --set kd.task=0.5": ("option kd.task is of kd alone", "beside kda"),
    "distill --method kd --method kda": ("--method was given 2 times (kd, kda)", "a run for each"),
    "distill --method kd --seed 0 --seed 1": ("--seed was given 2 times (0, 1)",),
    "distill --method kd --student resnet8 --student resnet14": ("--student was given 2 times",),
    "distill --method kda --with srm": ("--with srm", "only kd"),
    f"{KDA} --layer befor_fc": ("'befor_fc'", "did you mean 'before_fc'?"),
    f"{KDA} --student resnet80": ("'resnet80'", "did you mean 'resnet8'?"),
    f"{KDA} --set wieght=1": ("'wieght'", "did you mean 'weight'?"),
    f"{KDA} --set kad.weight=1": ("'kad'", "did you mean 'kda'?"),
    f"{KDA} --set weight": ("'weight'", "NAME=VALUE"),
    f"{KDA} --set weight=heavy": ("kda.weight", "float", "'heavy'"),
    f"{KDA} --set weight=": ("kda.weight", "float"),
    f"{KDA} --set whiten=1": ("kda.whiten", "true or false"),
    f"{KDA} --set landmarks=classes": ("kda.landmarks", "class, kmeans, random"),
    f"{KDA} --with kd --set weight=1": ("--set weight", "METHOD.weight"),
    f"{KDA} --recipe kad": ("'kad'", "did you mean 'kda'?"),
    f"{KDA} --optimizer sdg": ("'sdg'", "did you mean 'sgd'?"),
    f"{KDA} --schedule cosin": ("'cosin'", "did you mean 'cosine'?"),
    f"{KDA} --schedule step": ("this recipe has none", "--recipe crd", "milestones = [0.5, 0.75]"),
    f"{KDA} --recipe srm --schedule cosine": ("cosine has no drops", "resets = false"),
    f"{KDA} --optimizer adam": ("another learning rate than 0.1", "--learning-rate"),
    f"{KDA} --precision float23": ("'float23'", "did you mean 'float32'?"),
    f"{KDA} --device gpu": ("'gpu'", "known: auto, cpu, cuda"),
    f"{KDA} --device meta": ("'meta'", "known: auto, cpu, cuda"),
    f"{KDA} --epochs many": ("'--epochs'", "integer"),
    f"{KDA} --epochs 0": ("--epochs is at least 1",),
    f"{KDA} --epochs 1": ("kda_before_fc", "epoch 2", "--epochs 2"),
    f"{KDA} --batch 0": ("--batch is at least 1",),
    f"{KDA} --batch 64 --recipe icd": ("40 samples", "no batch of 64"),
    f"{KDA} --learning-rate 0": ("learning rate", "above 0"),
    f"{KDA} --learning-rate nan": ("learning rate", "finite"),
    f"{KDA} --weight-decay -1": ("weight decay", "at least 0"),
    f"{KDA} --views -1": ("--views is at least 1",),
    f"{KDA} --views 500": ("--views 500", "162 different placements"),
    f"{KDA} --shuffle-block -5": ("--shuffle-block is at least 1",),
    f"{KDA} --seed -1": ("--seed", "4,294,967,295"),
    f"{KDA} --seed 99999999999999999999": ("--seed", "4,294,967,295"),
    f"{KDA} --run ../elsewhere": ("--run", "below runs/"),
    f"{KDA} --cache nowhere": ("no cache at", "kdtool extract", "nowhere --for kda --student resnet8` makes one"),
    f"{KDA} --data-folder nowhere": ("no complete cifar10", "no such folder"),
    f"{KDA} --config nowhere.toml": ("nowhere.toml", "No such file"),
    "extract --for kad": ("'kad'", "did you mean 'kd'?"),
    "extract --for kda --student resnet9": ("'resnet9'", "did you mean 'resnet8'?"),
    "extract --for kda --set wieght=1": ("'wieght'", "did you mean 'weight'?"),
    "extract --set weight=1": ("--set weight", "no method is named"),
    "extract --views some": ("--views", "above 0 or all", "'some'"),
    "extract --views 0": ("--views", "above 0 or all"),
    "extract --views 163": ("--views 163", "162"),
    "extract --batch 0": ("batch", "at least 1"),
    "extract --block 17": ("block 17", "multiple of its batch"),
    "extract --fit-views 163": ("--fit-views 163", "162"),
    "extract --dtype float17": ("float17", "float16, float32"),
    "extract --dtype logit=float32": ("logit=float32", "logits"),
    "extract --clean befor_fc": ("--clean befor_fc", "before_fc"),
    "extract --precision auto": ("--precision", "float32 or bfloat16"),
    "extract --few-shot 0": ("0 were asked for",),
    "extract --validation 40": ("class", "too many"),
    "extract --seed -1": ("--seed", "4,294,967,295"),
    "plan --for kad": ("'kad'", "did you mean 'kd'?"),
    "cache info nowhere": ("no cache at", "kdtool extract"),
    "cache verify nowhere": ("no cache at", "kdtool extract"),
    "analyze gram-gap nowhere": ("nowhere", "no finished run"),
    "analyze gram-gap --layer befor_fc": ("'befor_fc'", "did you mean 'before_fc'?"),
    "analyze gram-gap --part validation": ("--part validation", "train, test"),
    "analyze gram-gap --algorithm moment": ("'moment'", "did you mean 'moments'?"),
    "analyze gram-gap --kernel gauss": ("'gauss'", "linear", "rbf"),
    "analyze gram-gap --kernel rbf --gamma 0": ("gamma is 0.0", "above 0"),
    "analyze gram-gap --gamma 1": ("gamma is 1.0", "rbf and polynomial"),
    "analyze gram-gap --kernel polynomial --degree 0": ("degree 0",),
    "analyze gram-gap --kernel rbf --degree 2": ("degree 2", "belong to the kernel polynomial; rbf"),
    "analyze gram-gap --kernel rbf --algorithm moments": ("rbf has no moments", "blocked or nystrom"),
    "analyze gram-gap --kernel rbf --algorithm nystrom --landmarks 0": ("landmarks 0",),
    "analyze gram-gap --plot gap.txt": ("gap.txt", ".svg, .png, .pdf"),
    "analyze gram-gap student.npy": (".npy files on both sides", "--teacher"),
    "analyze gram-gap student.npy --teacher teacher.npy": ("cannot read", "student.npy"),
    "analyze gram-gap student.npy --teacher teacher.npy --fresh": ("--fresh, --part", "files of features"),
    "analyze gram-gap student.npy --teacher teacher.npy --part test": ("--fresh, --part",),
    "analyze gram-gap student.npy --teacher teacher.npy --device cpu": ("--device", "files of features"),
    "analyze gram-gap --labels labels.npy": (".npy files on both sides",),
    "analyze bounds --kind classes": ("'classes'", "did you mean 'class'?"),
    "analyze bounds --kind class --count 5": ("count of 5", "random and k-means", "asked for: class"),
    "analyze spectrum --kind kmeans --per-class 2 --count 5": ("count of 5", "asked for: kmeans, 2 in every class"),
    "analyze landmarks --kind class --kind random --per-class 2": ("2 clusters", "asked for: class, random"),
    "analyze correlation --layer before_fc": ("--layer",),
    "analyze bounds --kind random --count 0": ("0 landmarks", "at least 1"),
    "analyze bounds --quiet --kind random --count 100000": ("100000 random landmarks of",),
    "analyze bounds --quiet --rank 0": ("rank",),
    "analyze spectrum --quiet --draws 0": ("draws",),
    "analyze landmarks": ("kept no weights", "--keep-weights 1"),
    "analyze similarity --quiet --temperature 0": ("temperature",),
    "analyze similarity --quiet --layer before_fc --temperature nan": ("temperature",),
    "analyze gram-gap --landmarks 5": ("5 landmarks", "linear by auto is exact"),
    "analyze gram-gap --kernel rbf --algorithm blocked --landmarks 5": ("5 landmarks", "rbf by blocked is exact"),
    "extract --student resnet8": ("--student belongs to the methods of --for",),
    "plan --tap zz=layer1": ("--tap belongs to the methods of --for",),
    "distill --method kd --data-folder a\udcff": ("--data-folder", "printable"),
    "distill --method kd --views 0": ("--views is at least 1",),
    "analyze correlation --quiet --images 1": ("1",),
    "distill --method kd --keep-weights 0": ("--keep-weights is at least 1",),
    "teach --data digits --keep-weights 0": ("--keep-weights is at least 1",),
    "report nowhere": ("nowhere", "not a folder"),
}


@pytest.mark.parametrize("line", WRONG)
def test_what_is_wrong_is_said_in_one_line(line: str, built: Path, data: Path, refused: Typed) -> None:
    """None of them gets as far as writing, so they share a folder."""
    folder = built.parent / "empty" if line.startswith("teach") else built
    words = [] if line.startswith("distil ") else ["--folder", folder]
    if "--data cifar10" in line and "--data-folder" not in line:
        words += ["--data-folder", data]
    before = sorted(built.parent.rglob("*"))
    said = refused(2, WRONG[line], line, *words)
    if line.startswith(("teach ", "extract ", "distill ")):
        assert refused(2, WRONG[line], line, "--dry-run", *words) == said
    assert sorted(built.parent.rglob("*")) == before


WITHOUT_A_FOLDER = {
    "models --classes 1": (),
    "data check cifra10": ("'cifra10'", "did you mean 'cifar10'?"),
    "data check": (),
    "quickstart --epochs 1": (),
    "bench kernls": ("'kernls'", "did you mean 'kernels'?"),
    "bench start kernls": ("'kernls'", "did you mean 'kernels'?"),
    "bench --device gpu": ("'gpu'", "known: auto, cpu, cuda"),
    "bench --precision float23": ("'float23'", "did you mean 'float32'?"),
}


@pytest.mark.parametrize("line", WITHOUT_A_FOLDER)
def test_commands_without_a_folder(line: str, refused: Typed) -> None:
    refused(2, WITHOUT_A_FOLDER[line], line)


@pytest.mark.parametrize("line", ["", "cache", "analyze", "data"])
def test_a_command_that_says_too_little_gets_the_help(line: str, typed: Typed) -> None:
    found = typed(line)
    assert found.code == 2
    assert found.out == ""
    assert found.err.startswith("Usage: ")
    assert "Commands:" in found.err


def test_a_folder_without_a_teacher(tmp_path: Path, refused: Typed) -> None:
    refused(2, ("teacher.json", "kdtool teach"), "extract --folder", tmp_path)
    refused(2, ("no cache at", "kdtool extract"), "distill --method kda --folder", tmp_path)
    refused(2, ("no finished student", "kdtool distill"), "analyze gram-gap --folder", tmp_path)


def test_a_folder_without_a_student(taught: Path, built: Path, tmp_path: Path, refused: Typed) -> None:
    folder = Path(shutil.copytree(taught, tmp_path / "work"))
    shutil.copytree(built / "cache.zarr", folder / "cache.zarr")
    refused(2, ("no finished student", "kdtool distill"), "analyze gram-gap --folder", folder)


def test_a_run_of_teach_has_no_teacher_to_compare_with(built: Path, refused: Typed) -> None:
    texts = ("kdtool teach", "kdtool distill")
    refused(2, texts, "analyze gram-gap --folder", built, built / "runs/teacher")


CONFIGURATIONS = {
    'method = "kda': ("not valid TOML", "line 1"),
    'method = "kda"\nepoch = 3': ("'epoch'", "did you mean 'epochs'?"),
    'method = "kda"\nepochs = "many"': ("epochs", "'many'", "a whole number"),
    'method = "kda"\nepochs = 2.5': ("epochs", "2.5", "a whole number"),
    'method = "kda"\nseed = true': ("seed", "True", "a whole number"),
    'method = "kda"\nlearning_rate = "high"': ("learning_rate", "'high'", "a number"),
    "method = 5": ("method", "5", "a text"),
    'method = "kda"\nlayer = "before_fc"': ("layer", "'before_fc'", "a list of texts"),
    'method = "kda"\nlayer = [5]': ("layer", "[5]", "a list of texts"),
    'method = "kda"\nset = 3': ("set", "3", "a table"),
    'method = "kda"\n[set]\nwieght = 1': ("'wieght'", "did you mean 'weight'?"),
    'method = "kda"\n[set]\nweight = "heavy"': ("kda.weight", "float", "'heavy'"),
    'method = "kda"\nrecipe = "kad"': ("'kad'", "did you mean 'kda'?"),
    'method = "kda"\nrecipe = 3': ("recipe", "3", "a table"),
    'method = "kda"\n[recipe]\nmomentun = 0.5': ("'momentun'", "did you mean 'momentum'?"),
    'method = "kda"\n[recipe]\nmomentum = 1.5': ("momentum", "1.5"),
    'method = "kda"\n[recipe]\nmilestones = [1, "a"]': ("milestones", "a list of numbers"),
    'method = "kda"\n[recipe]\nmilestones = [1.5]': ("milestone", "1.5"),
    'method = "kda"\n[recipe]\nwarmup = 3': ("warmup", "below 1"),
    'method = "kda"\n[recipe]\nnesterov = true\nmomentum = 0': ("nesterov", "momentum"),
    'command = "teach"': ("`kdtool teach`", "`kdtool distill`"),
}


@pytest.mark.parametrize("content", CONFIGURATIONS)
def test_configuration_files(content: str, built: Path, tmp_path: Path, refused: Typed) -> None:
    config = tmp_path / "c.toml"
    config.write_text(content + "\n")
    refused(2, CONFIGURATIONS[content], "distill --config", config, "--folder", built)


DEFAULTS = {
    "views = ": ("kdtool.toml", "not valid TOML"),
    "veiws = 3": ("'veiws'", "did you mean 'views'?"),
    'views = "3"': ("views", "'3'", "a whole number"),
    "views = true": ("views", "True", "a whole number"),
    "student = 8": ("student", "8", "a text"),
}


@pytest.mark.parametrize("line", DEFAULTS)
def test_defaults_of_the_folder(line: str, built: Path, tmp_path: Path, refused: Typed) -> None:
    (tmp_path / "kdtool.toml").write_text(line + "\n")
    refused(2, DEFAULTS[line], "distill --method kda --folder", tmp_path)


def test_another_number_of_classes(work: Path, data: Path, refused: Typed, monkeypatch: pytest.MonkeyPatch) -> None:
    """A data set and a record that say something else than the teacher's weights and the cache."""
    from dataclasses import replace

    real = data_sets.DATASETS["cifar10"]
    monkeypatch.setitem(data_sets.DATASETS, "cifar10", lambda folder: replace(real(folder), classes=100))
    shutil.rmtree(work / "runs/first/features")
    for line in ("distill --method kda", "extract", "analyze gram-gap"):
        refused(2, ("100 classes", "10 apart"), f"{line} --quiet --folder", work)
    monkeypatch.undo()
    record = files.read_json(work / "teacher.json", "")
    files.write_json(work / "teacher.json", {**record, "classes": 100})
    refused(2, ("(10,)", "(100,)"), "extract --folder", work)


def test_a_folder_that_is_something_else(built: Path, data: Path, tmp_path: Path, refused: Typed) -> None:
    (tmp_path / "file").write_text("no folder")
    refused(2, "no cache at", "distill --method kda --folder", tmp_path / "file")
    refused(2, "Not a directory", f"teach --data cifar10 --data-folder {data} --folder", tmp_path / "file")
    refused(2, ("is no cache", "--cache"), f"extract --folder {built} --cache", tmp_path)
    refused(2, ("no cache at",), f"distill --method kda --folder {built} --cache", tmp_path)


def test_a_run_folder_with_other_things_in_it(work: Path, refused: Typed) -> None:
    (work / "runs/notes").mkdir()
    (work / "runs/notes/ideas.txt").write_text("mine")
    refused(2, ("holds no run", "--run"), "distill --method kda --run notes --folder", work)
    assert (work / "runs/notes/ideas.txt").read_text() == "mine"
