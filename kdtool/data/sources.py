"""What is known about the published archives of data sets: names, addresses, checksums, sizes, and whom to ask.

An MD5 is pinned only where its source can be cited: "torchvision" stands for the source code of `torchvision.datasets`
(0.29, module in brackets), which has it beside the same file name. MD5 tells a torn or another file; it is no proof
against somebody who forges one. Left out: reading, which the module of each data set does, and copies of the archives
on other people's pages.
"""

from dataclasses import dataclass

from kdtool.data.archive import LIMIT_BYTES, MEMBERS

GIB = 2**30
SMALL = 16 * 2**20  # bytes of a list of labels


@dataclass(frozen=True)
class File:
    """A published file; the empty address or MD5 is none that is public, or that can be cited.

    gives: what it becomes below the data set's folder: the archive's top-level entry, or the file itself.
    limit_bytes: the most bytes of the file, and of all that an archive holds; limit_members: files and folders in it.
    bare: the archive's members have no folder of their own and come to lie in `gives`; nested: it is a tar of tars.
    """

    name: str
    gives: str
    address: str = ""
    md5: str = ""
    limit_bytes: int = LIMIT_BYTES
    limit_members: int = MEMBERS
    bare: bool = False
    nested: bool = False

    @property
    def plain(self) -> bool:
        """Whether it is no archive."""
        return self.name == self.gives


@dataclass(frozen=True)
class Source:
    """The forms in which a data set is published, of which one is enough; the first is the one to download.

    folder: below which all is put, for data sets whose archives have no folder of one name.
    advice: how to get the files that have no public address.
    """

    forms: tuple[tuple[File, ...], ...]
    folder: str = ""
    advice: str = ""


def _named(name: str) -> File:
    """A list of labels, no archive and without an address."""
    return File(name, name, limit_bytes=SMALL)


TORONTO = "https://www.cs.toronto.edu/~kriz/"
OXFORD = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/"

SOURCES: dict[str, Source] = {
    # Krizhevsky 2009. Addresses of the python form and MD5s: torchvision (cifar). The binary form is on the same page.
    "cifar10": Source(
        (
            (
                File(
                    "cifar-10-python.tar.gz",
                    "cifar-10-batches-py",
                    f"{TORONTO}cifar-10-python.tar.gz",
                    "c58f30108f718f92721af3b95e74349a",
                ),
            ),
            (File("cifar-10-binary.tar.gz", "cifar-10-batches-bin", f"{TORONTO}cifar-10-binary.tar.gz"),),
        )
    ),
    "cifar100": Source(
        (
            (
                File(
                    "cifar-100-python.tar.gz",
                    "cifar-100-python",
                    f"{TORONTO}cifar-100-python.tar.gz",
                    "eb9058c3a382ffc7106e4002c42a8d85",
                ),
            ),
            (File("cifar-100-binary.tar.gz", "cifar-100-binary", f"{TORONTO}cifar-100-binary.tar.gz"),),
        )
    ),
    # Coates, Ng and Lee 2011. Address and MD5: torchvision (stl10).
    "stl10": Source(
        (
            (
                File(
                    "stl10_binary.tar.gz",
                    "stl10_binary",
                    "http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz",
                    "91f7769df0f17e558f3565bffb0c7dfb",
                    4 * GIB,
                ),
            ),
        )
    ),
    # The course CS231n, 2015; 110,000 labelled and 10,000 unlabelled images. No checksum can be cited.
    "tiny_imagenet": Source(
        (
            (
                File(
                    "tiny-imagenet-200.zip",
                    "tiny-imagenet-200",
                    "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
                    limit_bytes=GIB,
                    limit_members=125_000,
                ),
            ),
        )
    ),
    # Russakovsky et al. 2015. MD5s and page: torchvision (imagenet).
    "imagenet": Source(
        (
            (
                File(
                    "ILSVRC2012_devkit_t12.tar.gz",
                    "ILSVRC2012_devkit_t12",
                    md5="fa75699e90414af021442c21a62c3abf",
                ),
                File(
                    "ILSVRC2012_img_val.tar",
                    "val",
                    md5="29b22e2961454d5413ddabcf34fc5622",
                    limit_bytes=8 * GIB,
                    limit_members=50_100,
                    bare=True,
                ),
                File(
                    "ILSVRC2012_img_train.tar",
                    "train",
                    md5="1d675b47d978889d74fa0da5fadfb00e",
                    limit_bytes=160 * GIB,
                    limit_members=1_300_000,
                    bare=True,
                    nested=True,
                ),
            ),
        ),
        folder="imagenet",
        advice="ImageNet is given to those who register and accept its terms: "
        "https://image-net.org/challenges/LSVRC/2012/2012-downloads.php",
    ),
    # Nilsback and Zisserman 2008. Addresses and MD5s: torchvision (flowers102).
    "flowers102": Source(
        (
            (
                File(
                    "imagelabels.mat",
                    "imagelabels.mat",
                    f"{OXFORD}imagelabels.mat",
                    "e0620be6f572b9609742df49c70aed4d",
                    SMALL,
                ),
                File("setid.mat", "setid.mat", f"{OXFORD}setid.mat", "a5357ecc9cb78c4bef273ce3793fc85c", SMALL),
                File(
                    "102flowers.tgz",
                    "jpg",
                    f"{OXFORD}102flowers.tgz",
                    "52808999861908f626f3c1f4e79d11fa",
                    limit_members=8_300,
                ),
            ),
        ),
        folder="flowers102",
    ),
    # Wah et al. 2011; 11,788 images.
    "cub200": Source(
        ((File("CUB_200_2011.tgz", "CUB_200_2011", limit_members=25_000),),),
        advice="the authors give CUB-200-2011 on their page https://www.vision.caltech.edu/datasets/cub_200_2011/",
    ),
    # Krause et al. 2013; 8,144 and 8,041 images. The page that torchvision (stanford_cars) names is no longer there.
    "stanford_cars": Source(
        (
            (
                File("car_devkit.tgz", "devkit"),
                _named("cars_test_annos_withlabels.mat"),
                File("cars_train.tgz", "cars_train", limit_members=9_000),
                File("cars_test.tgz", "cars_test", limit_members=9_000),
            ),
        ),
        folder="stanford_cars",
        advice="the authors' page https://ai.stanford.edu/~jkrause/cars/car_dataset.html no longer gives Stanford "
        "Cars; ask somebody who has its four files",
    ),
    # Quattoni and Torralba 2009; 15,620 images.
    "indoor67": Source(
        (
            (
                _named("TrainImages.txt"),
                _named("TestImages.txt"),
                File("indoorCVPR_09.tar", "Images", limit_bytes=4 * GIB, limit_members=20_000),
            ),
        ),
        folder="indoor67",
        advice="the authors give MIT Indoor-67 on their page https://web.mit.edu/torralba/www/indoor.html",
    ),
    # Pinto et al. 2011; 13,838 images.
    "pubfig83": Source(
        ((File("pubfig83.v1.tgz", "pubfig83", limit_members=20_000),),),
        advice="the authors give PubFig83 on their page http://vision.seas.harvard.edu/pubfig83/; what it calls "
        "otherwise can be named by --archive",
    ),
}
