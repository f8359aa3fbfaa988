"""The released checkpoints by name: which file of which Hugging Face repository, at which commit.

Names and files: LlamaGen (README.md at ce98ec4), 1d-tokenizer (README_RAR.md), SEED-Voken (docs/IBQ.md and
docs/Open-MAGVIT2.md), taming-transformers (README.md); for evaluations pytorch-fid 0.3 (inception.py),
guided-diffusion (evaluations/README.md), open_clip 3.3 (pretrained.py).

Commits, sizes and SHA-256 come from stored copies of the hub's own pages (for LlamaGen at the commit dc1fec5, which
added the files). The SHA-256 of vq_ds16_c2i.pt is recorded by three independent repositories. For files outside of the
hub, the hash is shown by copies on the hub (pytorch-fid's, torchvision's vgg16, adm-imagenet256), or recorded by at
least three independent repositories after a download. Eight digits in the file name of a network are the first of its
hash. A value that could not be read is None; the first download then pins the values of the server (vq.hub.fetch)."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository or below an address: name, size in bytes, SHA-256."""

    name: str
    size: int | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Release:
    """Files of a Hugging Face repository at one commit, or below one address.

    `repository` is None for files outside of the hub. Then `url` is the address of their folder, or `source` says in
    words where they are published. The address `torchvision:X` means the default weights X of torchvision.models."""

    name: str
    repository: str | None
    files: tuple[RemoteFile, ...]
    revision: str | None = None  # 40 hexadecimal digits
    source: str = ""
    url: str = ""

    @property
    def is_remote(self) -> bool:
        """Whether it can be downloaded."""
        return bool(self.repository or self.url)

    @property
    def origin(self) -> str:
        """The repository, the address of the folder, or the words of `source`."""
        if self.url.startswith("torchvision:"):
            import torchvision.models

            weights = getattr(torchvision.models, self.url.removeprefix("torchvision:"))
            return weights.DEFAULT.url.rpartition("/")[0]
        return self.repository or self.url or self.source

    def path(self, folder: Path) -> Path:
        """The path below `folder`: one file under its own name, several in a directory with the release's name."""
        return Path(folder) / (self.files[0].name if len(self.files) == 1 else self.name)

    def place(self, file: RemoteFile, folder: Path) -> Path:
        """The path of one of its files below `folder`."""
        return self.path(folder) if len(self.files) == 1 else self.path(folder) / file.name


def _one(name: str, repository: str, file: RemoteFile, revision: str | None = None) -> Release:
    return Release(name, repository, (file,), revision)


LLAMAGEN, LLAMAGEN_COMMIT = "FoundationVision/LlamaGen", "81e41139272c038412e4fe8f1c52a51ebbf95b8b"
LLAMAGEN_FILES = (
    RemoteFile("vq_ds16_c2i.pt", None, "109aa8afb2cf3761eec23cdc8644154cb498f5ab7eef2a35264d25e5e0499f7d"),
    RemoteFile("vq_ds8_c2i.pt", None, "c70d2966ec012f378793214ff0755087e7c5fe6f035b469995143325dca4a4e3"),
    RemoteFile("c2i_B_256.pt"),
    RemoteFile("c2i_B_384.pt", 443736709, "7ddf3a659b180e4339e4dab8802183ede1ea8f44c5cfd4359ab27bef979c17ad"),
    RemoteFile("c2i_L_256.pt", 1371712314, "15fe788b9c0e8dfe36f3e3fd701b44d0c934e4fd94a0ab599b69669aa8f44a55"),
    RemoteFile("c2i_L_384.pt", 1371860346, "9b8cb63634d11e684b4a68017abffff6698752ef715058a77e5e089539ebc39a"),
    RemoteFile("c2i_XL_384.pt", 3099048319, "736cb92bebdcb16737dbd35210a07ae4f7fd001cdfd55b26205d89182d1807ba"),
    RemoteFile("c2i_XXL_384.pt", None, "cba5a780b9d2394386e7410c630bced3a70e109cf7107e1783c9a986e9e7754e"),
    RemoteFile("c2i_3B_384.pt", 12386725354, "1e9173ecbe81295b1d80b021b2bf57ed4ef089601b6745336ff20a9f382c4cac"),
)
LLAMAGEN_T2I_FILES = (
    RemoteFile("vq_ds16_t2i.pt"),
    RemoteFile("t2i_XL_stage1_256.pt"),
    RemoteFile("t2i_XL_stage2_512.pt"),
)
FLAN_T5_FILES = (
    RemoteFile("config.json"),
    RemoteFile("tokenizer.json"),
    RemoteFile("tokenizer_config.json"),
    RemoteFile("special_tokens_map.json"),
    RemoteFile("spiece.model"),
    RemoteFile("model.safetensors.index.json"),
    RemoteFile(
        "model-00001-of-00002.safetensors",
        9449619912,
        "99196ddfbe886e8ef860f52de979df64890edfc792c3d94ce0502991f347dd18",
    ),
    RemoteFile(
        "model-00002-of-00002.safetensors",
        1949477672,
        "c0c677ddeb21009b6efd97146f37fc3a0396707fb5e63ade7aff64884dce9806",
    ),
)
TAMING_SOURCE = "the links in the README.md of CompVis/taming-transformers (the file is called last.ckpt there)"

ADM = "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/ref_batches/imagenet"
INCEPTION = "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights"
# Inputs of evaluations: networks, ADM's reference batches and published samples, COCO's captions.
EVALUATION = (
    Release(
        "inception-2015-12-05",
        None,
        (
            RemoteFile(  # the same bytes as torch-fidelity's weights-inception-2015-12-05-6726825d.pth
                "pt_inception-2015-12-05-6726825d.pth",
                95628359,
                "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
            ),
        ),
        url=INCEPTION,
    ),
    Release("adm-imagenet64", None, (RemoteFile("VIRTUAL_imagenet64_labeled.npz"),), url=f"{ADM}/64"),
    Release(
        "adm-imagenet256",
        None,
        (
            RemoteFile(
                "VIRTUAL_imagenet256_labeled.npz",
                2037122530,
                "b32732719497e42660a9affb4a966068cba0855ac449b82015e34ec376d20758",
            ),
        ),
        url=f"{ADM}/256",
    ),
    Release("adm-imagenet512", None, (RemoteFile("VIRTUAL_imagenet512.npz"),), url=f"{ADM}/512"),
    Release(
        "adm-samples-imagenet256", None, (RemoteFile("admnet_guided_upsampled_imagenet256.npz"),), url=f"{ADM}/256"
    ),
    Release(
        "clip-vit-b-32",
        "timm/vit_base_patch32_clip_224.openai",
        (
            RemoteFile(
                "open_clip_model.safetensors",
                605143284,
                "e6d1bd7789aa45192b3bf90570a789b478bae1b74ebcce7eddd908e83a2b7c31",
            ),
        ),
        "a6f597a30f7b82c51704746581f9a4e41421e878",
    ),
    Release(
        "lpips-alexnet",
        None,
        (
            RemoteFile(
                "alexnet-owt-7be5be79.pth",
                244408911,
                "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
            ),
        ),
        url="torchvision:AlexNet_Weights",
    ),
    Release(
        "lpips-vgg16",
        None,
        (
            RemoteFile(
                "vgg16-397923af.pth",
                553433881,
                "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
            ),
        ),
        url="torchvision:VGG16_Weights",
    ),
    # Captions, for COCO's folder. Plain HTTP, because the server's certificate is for another name.
    Release(
        "coco-annotations",
        None,
        (
            RemoteFile(
                "annotations_trainval2014.zip",
                252872794,
                "031296bbc80c45a1d1f76bf9a90ead27e94e99ec629208449507a4917a3bf009",
            ),
        ),
        url="http://images.cocodataset.org/annotations",
    ),
)

RELEASES = {
    release.name: release
    for release in (
        *(_one(Path(file.name).stem, LLAMAGEN, file, LLAMAGEN_COMMIT) for file in LLAMAGEN_FILES),
        *(_one(Path(file.name).stem, "peizesun/llamagen_t2i", file) for file in LLAMAGEN_T2I_FILES),
        Release("flan-t5-xl", "google/flan-t5-xl", FLAN_T5_FILES, "7d6315df2c2fb742f0f5b556879d730926ca9001"),
        _one("maskgit-vq", "fun-research/TiTok", RemoteFile("maskgit-vqgan-imagenet-f16-256.bin")),
        _one("ibq-1024", "TencentARC/IBQ-Tokenizer-1024", RemoteFile("imagenet256_1024.ckpt")),
        _one("ibq-8192", "TencentARC/IBQ-Tokenizer-8192", RemoteFile("imagenet256_8192.ckpt")),
        _one("ibq-16384", "TencentARC/IBQ-Tokenizer-16384", RemoteFile("imagenet256_16384.ckpt")),
        _one("ibq-262144", "TencentARC/IBQ-Tokenizer-262144", RemoteFile("imagenet256_262144.ckpt")),
        _one(
            "open-magvit2-262144",
            "TencentARC/Open-MAGVIT2-Tokenizer-256-resolution",
            RemoteFile("imagenet_256_L.ckpt"),
        ),
        Release("taming-1024", None, (RemoteFile("vqgan_imagenet_f16_1024.ckpt"),), source=TAMING_SOURCE),
        Release("taming-16384", None, (RemoteFile("vqgan_imagenet_f16_16384.ckpt"),), source=TAMING_SOURCE),
        *EVALUATION,
    )
}
