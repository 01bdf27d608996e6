"""Every data set and model: one line, paper, what it takes. Plain data, without torch."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from kfbench.config.families.on_sequences import TRANSFORMER
from kfbench.config.method_table import BENZING, GEORGE


@dataclass(frozen=True)
class DatasetEntry:
    """One name for ``--dataset``: files in a published format, IDX unless there are others with their MD5."""

    summary: str
    paper: str
    classes: int  # 0: no labels
    torchvision: str  # class in torchvision.datasets that downloads it; "" where there is none
    sizes: tuple[int, int]  # training, test
    synthetic: bool = False  # generated from a seed where it is missing
    system_folders: tuple[str, ...] = ()
    debian_package: str = ""
    folder: str = ""  # torchvision's, below the one that it is given
    splits: tuple[str, ...] = ()  # where torchvision downloads one at a time
    url: str = ""  # of its file, where it is to be downloaded by hand
    sha256: Mapping[str, str] = field(default_factory=dict)  # of the decompressed IDX files
    md5: Mapping[str, str] = field(default_factory=dict)  # of all other files, the test set last; "" if not known
    # Published mean and deviation of each channel of the training images, pixels from 0 to 1; grey images have none.
    channels: tuple[tuple[float, float], ...] = ()
    real: bool = False  # pixels are real numbers of the file's own scale, and "published" leaves them so
    text: str = ""  # the name of its file, where samples are windows of a text; its sizes are then characters


@dataclass(frozen=True)
class ModelEntry:
    """One name for ``--model``."""

    summary: str
    paper: str
    options: tuple[str, ...]
    likelihood: str = "categorical"  # what its output means; all others reconstruct the input
    width: int = 0  # its default, where it has that option
    pad_to: int = 0  # pixels a side of the images that it is made for
    convolutional: bool = False  # whether methods have other defaults for it
    sequential: bool = False  # it takes characters, all others of ours images
    defaults: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # of methods, where others suit it


# Every option that a model may have; those of each are in its entry.
MODEL_OPTIONS = ("width", "bias", "norm", "init", "depth", "heads", "tied")
_CONVOLUTIONAL_OPTIONS = ("width", "bias", "norm", "init")

# Characters of a window, where no context is given.
DEFAULT_CONTEXT = 64

_HINTON = "Hinton & Salakhutdinov 2006, Reducing the Dimensionality of Data with Neural Networks, Science"

_MARTENS = "Martens 2010, Deep learning via Hessian-free optimization, ICML"

_FASHION_MNIST = (
    "Xiao, Rasul & Vollgraf 2017, Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms"
)

_CIFAR = "Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images, University of Toronto"

DATASETS: Mapping[str, DatasetEntry] = MappingProxyType(
    {
        "fashion-mnist-1k": DatasetEntry(
            summary="1,000 + 1,000 images drawn once from Fashion-MNIST, carried in the package",
            paper=_FASHION_MNIST,
            classes=10,
            torchvision="",
            sizes=(1000, 1000),
            sha256={
                "train-images-idx3-ubyte": "1e483751525586bc91a931c1d0cbc82bcd23a088af3c00d5dd4604b2f948066a",
                "train-labels-idx1-ubyte": "2c5ab80733abf7aaee01f6c9d42e06a65945c8992997a1542228783979317b8d",
                "t10k-images-idx3-ubyte": "b3a809631d2d7e6bef5251202f12daefeb63845594eb223c094fd12135393a98",
                "t10k-labels-idx1-ubyte": "69875cb6abe0d2c29baa1d0f7be55a3ab004fdd65542037edf00480ccb19dc6f",
            },
        ),
        "fashion-mnist": DatasetEntry(
            summary="60,000 + 10,000 grey images of clothes, 28 x 28, 10 classes",
            paper=_FASHION_MNIST,
            classes=10,
            torchvision="FashionMNIST",
            folder="FashionMNIST/raw",
            sizes=(60000, 10000),
            system_folders=("/usr/share/datasets/fashion-mnist",),
            debian_package="dataset-fashion-mnist",
            sha256={
                "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
                "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
                "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
                "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
            },
        ),
        "mnist": DatasetEntry(
            summary="60,000 + 10,000 grey images of handwritten digits, 28 x 28, 10 classes",
            paper="LeCun, Bottou, Bengio & Haffner 1998, Gradient-based learning applied to document recognition",
            classes=10,
            torchvision="MNIST",
            folder="MNIST/raw",
            sizes=(60000, 10000),
        ),
        "cifar10": DatasetEntry(
            summary="50,000 + 10,000 colour photographs, 32 x 32, 10 classes",
            paper=_CIFAR,
            classes=10,
            torchvision="CIFAR10",
            folder="cifar-10-batches-py",
            sizes=(50000, 10000),
            system_folders=("/usr/share/datasets/cifar10",),
            md5={
                "data_batch_1": "c99cafc152244af753f735de768cd75f",
                "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
                "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
                "data_batch_4": "634d18415352ddfa80567beed471001a",
                "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
                "test_batch": "40351d587109b95175f43aff81a1287e",
            },
            channels=((0.4914, 0.2470), (0.4822, 0.2435), (0.4465, 0.2616)),
        ),
        "cifar100": DatasetEntry(
            summary="50,000 + 10,000 colour photographs, 32 x 32, 100 classes",
            paper=_CIFAR,
            classes=100,
            torchvision="CIFAR100",
            folder="cifar-100-python",
            sizes=(50000, 10000),
            system_folders=("/usr/share/datasets/cifar100",),
            md5={"train": "16019d7e3df5f24257cddd939b257f8d", "test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
            channels=((0.5071, 0.2673), (0.4865, 0.2564), (0.4409, 0.2762)),
        ),
        "svhn": DatasetEntry(
            summary="73,257 + 26,032 colour photographs of house numbers' digits, 32 x 32, 10 classes",
            paper="Netzer, Wang, Coates, Bissacco, Wu & Ng 2011, Reading Digits in Natural Images with Unsupervised "
            "Feature Learning, NeurIPS workshop",
            classes=10,
            torchvision="SVHN",
            splits=("train", "test"),
            sizes=(73257, 26032),
            system_folders=("/usr/share/datasets/svhn",),
            md5={
                "train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373",
                "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3",
            },
            channels=((0.4377, 0.1980), (0.4438, 0.2010), (0.4728, 0.1970)),
        ),
        "curves": DatasetEntry(
            summary="20,000 + 10,000 synthetic images of curves, 28 x 28, no labels, generated from a fixed seed",
            paper=f"after {_HINTON}",
            classes=0,
            torchvision="",
            sizes=(20000, 10000),
            synthetic=True,
            sha256={
                "train-images-idx3-ubyte": "02a9db8cd4a4b0d0f539185eabead3d9054562bd24203688836ed50c9945088b",
                "t10k-images-idx3-ubyte": "d775bb425ae04bb8247bd0aafd375c10ae019bb6d6c59394ad857e7e89446856",
            },
        ),
        "curves-original": DatasetEntry(
            summary="20,000 + 10,000 images of curves, 28 x 28, no labels: the published ones, in Martens's file",
            paper=f"{_HINTON}; {_MARTENS}",
            classes=0,
            torchvision="",
            sizes=(20000, 10000),
            url="https://www.cs.toronto.edu/~jmartens/digs3pts_1.mat",
            md5={"digs3pts_1.mat": ""},
        ),
        "faces": DatasetEntry(
            summary="103,500 + 41,400 patches of Olivetti faces, 25 x 25 real numbers, no labels, in Martens's file",
            paper=f"{_HINTON}; {_MARTENS}",
            classes=0,
            torchvision="",
            sizes=(103500, 41400),
            url="https://www.cs.toronto.edu/~jmartens/newfaces_rot_single.mat",
            md5={"newfaces_rot_single.mat": ""},
            channels=((0.0, 1.0),),
            real=True,
        ),
        "shakespeare": DatasetEntry(
            summary="nine plays of Shakespeare, 1,098,078 characters of 80 kinds, carried in the package",
            paper="Shakespeare, W., in the editions of Project Gutenberg (public domain), from Open Shakespeare 0.6",
            classes=80,
            torchvision="",
            sizes=(988271, 109807),
            text="shakespeare.txt",
            sha256={"shakespeare.txt": "9c4e7d5f3efc8a6fb162a95d7326c4a615fe4872c1615dd5d15a9c47056a2f4d"},
        ),
    }
)
# A text of the user's own, which is read before its characters are known.
_OWN_TEXT = DatasetEntry("a text of your own", "", classes=0, torchvision="", sizes=(0, 0), text="*.txt")


def is_own_text(name: str) -> bool:
    """Whether a data set is meant by the path of a text."""
    return name not in DATASETS and name.lower().endswith(".txt")


def dataset_entry(name: str) -> DatasetEntry | None:
    """What is known of a data set, ours or a text of the user's; None of a name that is neither."""
    return _OWN_TEXT if is_own_text(name) else DATASETS.get(name)


_HE = "He, Zhang, Ren & Sun 2016, Deep Residual Learning for Image Recognition, CVPR"

MODELS: Mapping[str, ModelEntry] = MappingProxyType(
    {
        "mlp": ModelEntry(
            "three hidden ReLU layers of equal width (1000), no bias",
            f"{BENZING}, appendix D.5",
            ("width", "bias"),
            width=1000,
        ),
        "logistic": ModelEntry("multinomial logistic regression", f"{BENZING}, Figure 2A", ("bias",)),
        "autoencoder": ModelEntry(
            "d-1000-500-250-30-250-500-1000-d, tanh, linear code and output, no bias; squared error (Gaussian)",
            f"{BENZING}, appendix D.7",
            ("width", "bias"),
            "gaussian",
            width=1000,
        ),
        "autoencoder-sigmoid": ModelEntry(
            "the same widths, sigmoid units with biases; cross-entropy of pixels from 0 to 1 (Bernoulli)",
            f"{GEORGE}, section 4.1; {_HINTON}",
            ("width", "bias"),
            "bernoulli",
            width=1000,
        ),
        "autoencoder-faces": ModelEntry(
            "d-2000-1000-500-30-500-1000-2000-d, sigmoid, linear code and output, biases; squared error (Gaussian)",
            f"{_HINTON}; {_MARTENS}",
            ("width", "bias"),
            "gaussian",
            width=2000,
        ),
        "convnet": ModelEntry(
            "three 3 x 3 convolutions (16, 32, 64 channels) with pooling, one linear layer; quick",
            "ours: a first experience",
            _CONVOLUTIONAL_OPTIONS,
            width=16,
            convolutional=True,
        ),
        "vgg11": ModelEntry(
            "VGG11 for 32 x 32 images, 64 channels first, no batch normalisation",
            "Simonyan & Zisserman 2015, Very Deep Convolutional Networks for Large-Scale Image Recognition, ICLR; "
            f"{GEORGE}, section 4.2",
            _CONVOLUTIONAL_OPTIONS,
            width=64,
            pad_to=32,
            convolutional=True,
        ),
        "resnet18": ModelEntry(
            "ResNet18 for 32 x 32 images, 64 channels first, batch normalisation",
            f"{_HE}; {BENZING}, appendix D.6",
            _CONVOLUTIONAL_OPTIONS,
            width=64,
            pad_to=32,
            convolutional=True,
        ),
        "resnet34": ModelEntry(
            "ResNet34 for 32 x 32 images, 64 channels first, batch normalisation",
            f"{_HE}; {GEORGE}, section 4.2",
            _CONVOLUTIONAL_OPTIONS,
            width=64,
            pad_to=32,
            convolutional=True,
        ),
        "transformer": ModelEntry(
            "causal transformer of characters: pre-norm, 2 blocks, 4 heads, width 64, learned positions",
            "Radford, Wu, Child, Luan, Amodei & Sutskever 2019, Language Models are Unsupervised Multitask Learners; "
            "Vaswani et al. 2017, Attention Is All You Need, NeurIPS",
            ("width", "bias", "depth", "heads", "tied"),
            width=64,
            sequential=True,
            defaults=TRANSFORMER,
        ),
    }
)


# Files that hold a user's own data set.
OWN_FILES = (".npz", ".safetensors")


def is_own(dataset: str) -> bool:
    """Whether it is a user's data set, a file of arrays or package.module:function, and no name of ours."""
    return dataset not in DATASETS and not is_own_text(dataset) and (dataset.endswith(OWN_FILES) or ":" in dataset)


def training_samples(dataset: str, train_samples: int | None, context: int | None = None) -> float:
    """How many samples are trained on; infinite where a user's own data set does not say."""
    size: float = DATASETS[dataset].sizes[0] if dataset in DATASETS else math.inf
    if dataset in DATASETS and DATASETS[dataset].text:
        size = (size - 1) // (context or DEFAULT_CONTEXT)
    return min(train_samples or size, size)
