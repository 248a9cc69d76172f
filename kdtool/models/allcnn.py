"""All-convolutional networks (Springenberg et al. 2015, arXiv 1412.6806) as the students of SRM (arXiv 2103.17012).

`allcnn` is for small images and 0.66 times as wide as `allcnn_transfer`, which is for images of 224x224. Definitions
and initialisation as in the authors' code: every convolution has a bias, though a BatchNorm follows it and takes the
bias out again. Left out: dropout, other widths.
"""

from collections.abc import Callable, Sequence

from torch import nn

from kdtool.models.network import Network, convolution, global_pool, initialise_fan_in

WIDTHS = (96, 192, 256, 384)
SCALE = 0.66
STRIDED = ((3, 1), (3, 1), (3, 2))  # kernel and stride of each convolution in blocks 1 to 3
LAST = ((3, 1), (3, 1), (1, 1))


def _layer(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        convolution(inputs, outputs, kernel, stride, bias=True), nn.BatchNorm2d(outputs), nn.LeakyReLU(0.1)
    )


def _network(stem: nn.Module | None, inputs: int, widths: Sequence[int], classes: int) -> Network:
    """Taps: stageN, the output of block N; stageN.preact before its last LeakyReLU; stem where there is one."""
    modules: dict[str, nn.Module] = {} if stem is None else {"stem": stem}
    taps = {name: name for name in modules}
    for number, width in enumerate(widths, start=1):
        (kernel, stride), *rest = STRIDED if number < len(widths) else LAST
        first = _layer(inputs, width, kernel, stride)
        modules[f"stage{number}"] = nn.Sequential(first, *(_layer(width, width, *shape) for shape in rest))
        taps |= {f"stage{number}": f"stage{number}", f"stage{number}.preact": f"stage{number}.2.2:input"}
        inputs = width
    modules |= {"pool": global_pool(), "fc": nn.Linear(inputs, classes)}
    network = Network(modules, {**taps, "before_fc": "pool", "after_fc": ""})
    initialise_fan_in(network)
    return network


def _allcnn(classes: int) -> Network:
    """Without a stem: the first block reads the image."""
    return _network(None, 3, [int(SCALE * width) for width in WIDTHS], classes)


def _allcnn_transfer(classes: int) -> Network:
    """The stem, whose tap is the output of its max-pooling, quarters the image's size."""
    stem = nn.Sequential(
        convolution(3, 48, 7, stride=2, bias=True), nn.BatchNorm2d(48), nn.ReLU(), nn.MaxPool2d(3, stride=2, padding=1)
    )
    return _network(stem, 48, WIDTHS, classes)


NETWORKS: dict[str, Callable[[int], nn.Module]] = {"allcnn": _allcnn, "allcnn_transfer": _allcnn_transfer}
