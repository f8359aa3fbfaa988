# MASC on LlamaGen. `make help` lists the commands. MODEL, HEAD, TREE, DATA, ... name files in the groups of configs/.

# The variables that a command takes. Each holds any text: neither make, nor the shell, nor Hydra reads anything into it.
# ARGS, PYTHON and SETUP_PYTHON are words of the shell.
CHOICES = MODEL HEAD LOSS RECIPE OPTIM TREE DATA DATA_PATH TOKENIZER K SEED SEEDS RACE INIT FROM RUN RUN_DIR RUNS SAMPLES NAME RELEASE PRESET CAPTIONS RESULTS PROTOCOL ARGS
VARIABLES = $(CHOICES) GPUS NODES MACHINE_RANK MAIN_HOST MAIN_PORT LAUNCH_DEVICE PYTHON SETUP_PYTHON
GIVEN := $(foreach name,$(.VARIABLES),$(if $(filter command,$(firstword $(origin $(name)))),$(name)))
# A make that runs this one hands its own variables down.
UNKNOWN := $(if $(filter 0,$(MAKELEVEL)),$(filter-out $(VARIABLES) SHELL,$(GIVEN)))
comma := ,
space := $(subst ,, )
define newline


endef
$(if $(UNKNOWN),$(error there is no variable $(firstword $(UNKNOWN)); the variables are $(VARIABLES). A value of the config is given in ARGS, as in ARGS="steps=10". $(firstword $(UNKNOWN)) stands on the command line, or in MAKEFLAGS of the environment))
$(foreach name,$(VARIABLES),$(if $(findstring $(newline),$(value $(name))),$(error $(name) holds a line break)))
$(foreach name,$(CHOICES),$(if $(filter environment,$(origin $(name))),$(warning $(name)=$(value $(name)) is taken from the environment)))
# Make would expand a $ in what was given.
$(foreach name,$(VARIABLES),$(if $(filter command environment,$(firstword $(origin $(name)))),$(eval override $(name) := $$(value $(name)))))

# $(call set,KEY,VARIABLE) is the word KEY=TEXT if the variable holds a text, and $(call each,KEY,VARIABLE) the word for
# a list of texts. What stands before the word -- is taken as it is; behind it stand overrides in Hydra's grammar.
quote = '$(subst ','\'',$(1))'
set = $(call read,$(2))$(if $($(2)),$(call quote,$(1)=$($(2))))
each = $(call read,$(2))$(if $($(2)),$(call quote,$(1)[]=$($(2))))
WORDS = $(UNREAD)-- $(ARGS)
# What a recipe has read so far; what was given and not read is told. TOKENIZER follows from DATA, and DATA from MODEL and RECIPE.
READ :=
read = $(eval READ += $(1))
UNREAD = $(foreach name,$(filter-out $(READ) $(if $(filter DATA TOKENIZER,$(READ)),DATA MODEL RECIPE) ARGS PYTHON SETUP_PYTHON,$(filter $(VARIABLES),$(GIVEN))),$(warning make $@ does not read $(name)))

# They change how Python itself works: where it finds modules, what it leaves out, what it takes for an error.
unexport PYTHONSAFEPATH PYTHONHOME PYTHONOPTIMIZE PYTHONWARNINGS PYTHONINSPECT

PYTHON ?= .venv/bin/python
SETUP_PYTHON ?= python3
ARGS ?=

# The defaults run on the embedded data; the published model sizes are trained on ImageNet, but for RECIPE=smoke.
MODEL ?= llamagen-tiny
HEAD ?= masc
LOSS ?= ce
RECIPE ?= masc
OPTIM ?=
TREE ?= masc
DATA ?= $(if $(filter smoke,$(RECIPE)),twemoji,$(if $(filter-out llamagen-micro llamagen-tiny llamagen-tiny-text,$(MODEL)),imagenet256,twemoji))
TOKENIZER ?= $(if $(filter twemoji,$(DATA)),emoji32,$(if $(filter twemoji64,$(DATA)),emoji64,$(if $(findstring coco,$(DATA)),vq16-t2i,vq16)))
SEED ?= 0
SEEDS ?= 0
RACE ?= embedded
GPUS ?= 1
NODES ?= 1
DATA_PATH ?=
K ?=
INIT ?=
FROM ?=
RUN ?=
RUN_DIR ?=
RUNS ?=
SAMPLES ?= default
NAME ?=
RELEASE ?=
PRESET ?=
CAPTIONS ?=
RESULTS ?=
PROTOCOL ?= adm,paper

# With several nodes, run the same command on each; SLURM's variables give the node's number.
MACHINE_RANK ?= $(if $(filter 1,$(NODES)),0,$(or $(SLURM_NODEID),0))
MAIN_HOST ?= 127.0.0.1
# Empty: a free port on one machine, 29500 on several.
MAIN_PORT ?=
# --cpu starts the processes on the CPU.
LAUNCH_DEVICE ?= --multi_gpu

LAUNCHER = $(PYTHON) scripts/launch.py $(foreach name,GPUS NODES MACHINE_RANK MAIN_HOST MAIN_PORT LAUNCH_DEVICE,$(call quote,$($(name))))
# Recipes start programs by exec, so that no shell stands between make and a process that make sends a signal on to.
LAUNCH = $(call read,GPUS NODES MACHINE_RANK MAIN_HOST MAIN_PORT LAUNCH_DEVICE)exec $(if $(filter 1/1/--multi_gpu,$(GPUS)/$(NODES)/$(LAUNCH_DEVICE)),$(PYTHON),$(LAUNCHER))
# Benchmarks import the scripts, and the stand-ins of the tests.
BENCH = PYTHONPATH=scripts:tests $(PYTHON)
CLUSTERS = $(call set,head.num_clusters,K)
IMAGES = $(call set,data,DATA) $(call set,data.path,DATA_PATH)
NEED_RUN = $(if $(RUN),,$(error say which run: make $@ RUN=runs/llamagen-tiny/masc/seed0))
# The model that samples: a run, or a released model with its published settings.
SUBJECT = $(if $(RELEASE),$(call set,release,RELEASE) $(call set,sampling,$(if $(PRESET),PRESET,RELEASE)),$(call set,run,RUN) $(call set,sampling,PRESET))

# The measured images: samples of a run or a release by the name of their set, or any images by their path.
IS_DEFAULT = $(filter default,$(subst $(space),/,$(SAMPLES)))
PICTURES = $(if $(IS_DEFAULT),$(error say what to measure: RUN=runs/..., RELEASE=c2i_B_256, or SAMPLES=folder or .npz),$(call set,samples,SAMPLES))
MEASURED = $(if $(RUN)$(RELEASE),$(SUBJECT) $(call set,samples,SAMPLES),$(PICTURES))
PROTOCOLS = $(call read,PROTOCOL)$(foreach name,$(subst $(comma), ,$(PROTOCOL)),$(call quote,+protocol@protocols.$(name)=$(name)))

.DEFAULT_GOAL := help
.PHONY: help setup reproduce reproduce-text race experiment experiments tokenizer codebook codes check-codes import-codes tree tree-report plan train sample export parameters weights \
	text-features reference coco-captions eval-fid eval-coco eval-lite eval-text eval-tokenizer eval-replacement doctor report dashboard \
	sweep bench bench-tree bench-data bench-heads bench-losses bench-read bench-tokenizers bench-sample bench-eval bench-warm bench-train bench-small-tokenizer test test-all lint format clean

help:  ## list the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | awk -F'\t' '{printf "  make %-22s %s\n", $$1, $$2}'
	@echo
	@echo "  MODEL HEAD LOSS RECIPE OPTIM TREE DATA DATA_PATH TOKENIZER K SEED GPUS NODES choose; ARGS=\"key=value ...\" overrides any config value."
	@echo "  GPUS=2 LAUNCH_DEVICE=--cpu starts two processes on the CPU; MAIN_HOST MAIN_PORT MACHINE_RANK say how NODES meet."

setup:  ## make .venv with the pinned packages
	@$(SETUP_PYTHON) -I scripts/install.py

# Every command installs what it needs if it is the first one.
ifeq ($(PYTHON),.venv/bin/python)
reproduce reproduce-text race experiment experiments tokenizer codebook codes check-codes import-codes tree tree-report plan train sample export parameters weights text-features \
	reference coco-captions eval-fid eval-coco eval-lite eval-text eval-tokenizer eval-replacement doctor report dashboard \
	sweep bench bench-tree bench-data bench-heads bench-losses bench-read bench-tokenizers bench-sample bench-eval bench-warm bench-train bench-small-tokenizer test test-all lint format: setup
endif

# Variables that the main job does not read are refused.
REFUSED = $(filter MODEL DATA HEAD LOSS RECIPE OPTIM TREE TOKENIZER SEED,$(GIVEN))

reproduce:  ## the main job on the embedded data, from images to the report: SEEDS=0,1,2 K=512
	$(if $(strip $(REFUSED)),$(error make reproduce does not take $(strip $(REFUSED)): say it in ARGS, as in ARGS="heads=[flat$(comma)masc]"))
	exec $(PYTHON) scripts/reproduce.py $(call each,seeds,SEEDS) $(call set,num_clusters,K) $(WORDS)

reproduce-text:  ## text to image on the embedded data, from captions to a page: SEEDS=0 K=512 ARGS="captions=['red apple']"
	$(if $(strip $(REFUSED)),$(error make reproduce-text does not take $(strip $(REFUSED)): say it in ARGS, as in ARGS="heads=[flat$(comma)masc]"))
	exec $(PYTHON) scripts/reproduce_text.py $(call each,seeds,SEEDS) $(call set,num_clusters,K) $(WORDS)

race:  ## contenders on equal terms, tuned alike and judged by fixed rules: RACE=embedded SEEDS=0,1,2,3,4
	exec $(PYTHON) scripts/race.py $(call set,race,RACE) $(if $(filter file,$(origin SEEDS)),,$(call each,seeds,SEEDS)) $(WORDS)

# NAME-smoke is the smoke test of NAME.
experiment:  ## a row of a paper's table from images to the number: NAME=table1-xl-masc-8192 GPUS=8 DATA_PATH=/data/ILSVRC, or NAME=...-smoke
	$(if $(NAME),,$(error say which: make $@ NAME=table1-b-masc-8192; make experiments lists them))exec $(PYTHON) scripts/experiment.py \
		$(call read,NAME)$(call quote,experiment=$(patsubst %-smoke,%,$(NAME))) $(if $(filter %-smoke,$(NAME)),smoke=true) $(call set,data_path,DATA_PATH) \
		$(call set,seed,SEED) $(call set,gpus,GPUS) $(call set,launch_device,LAUNCH_DEVICE) $(call set,main_port,MAIN_PORT) $(WORDS)

experiments:  ## list the experiments with published FID, cost, and what is missing here: DATA_PATH=/data/ILSVRC
	exec $(PYTHON) scripts/experiments.py $(call set,data_path,DATA_PATH) $(WORDS)

tokenizer:  ## train the small tokenizer: TOKENIZER=emoji32
	exec $(PYTHON) scripts/tokenizer.py $(call set,tokenizer,TOKENIZER) $(if $(filter emoji64,$(TOKENIZER)),data=twemoji64,$(IMAGES)) $(WORDS)

codebook:  ## effective codebook of a tokenizer: TOKENIZER=emoji32
	exec $(PYTHON) scripts/codebook.py $(call set,tokenizer,TOKENIZER) $(WORDS)

codes:  ## encode images into packed codes: DATA=imagenet256 TOKENIZER=vq16 GPUS=8 DATA_PATH=/data/ILSVRC
	$(LAUNCH) scripts/codes.py $(IMAGES) $(call set,tokenizer,TOKENIZER) $(WORDS)

check-codes:  ## verify the checksums of codes and decode a grid of random entries: DATA=... TOKENIZER=...
	exec $(PYTHON) scripts/check_codes.py $(IMAGES) $(call set,tokenizer,TOKENIZER) $(WORDS)

import-codes:  ## turn LlamaGen's .npy files into packed codes: DATA=imagenet256 ARGS="folders=[TEN_CROP,TEN_CROP_105]"
	exec $(PYTHON) scripts/import_codes.py $(IMAGES) $(call set,tokenizer,TOKENIZER) $(WORDS)

tree:  ## dendrogram of a codebook, or clusters by another method: TREE=masc TOKENIZER=emoji32 K=512
	exec $(PYTHON) scripts/tree.py $(call set,tree,TREE) $(call set,tokenizer_name,TOKENIZER) $(CLUSTERS) $(WORDS)

tree-report:  ## one page that compares a tree with other clusterings: TOKENIZER=emoji32 K=512 ARGS=+tree@trees.ward=ward
	exec $(PYTHON) scripts/tree_report.py $(call set,tokenizer,TOKENIZER) $(IMAGES) $(call set,num_clusters,K) $(WORDS)

train:  ## train a run, or resume it: MODEL=llamagen-tiny HEAD=masc LOSS=ce RECIPE=masc DATA=twemoji SEED=0 GPUS=1 NODES=1
	$(LAUNCH) scripts/train.py $(call set,model,MODEL) $(call set,head,HEAD) $(call set,loss,LOSS) $(call set,recipe,RECIPE) $(call set,optim,OPTIM) $(call set,tree,TREE) $(IMAGES) \
		$(call set,tokenizer_name,TOKENIZER) $(call set,seed,SEED) $(CLUSTERS) $(call set,run_dir,RUN_DIR) $(call set,init,INIT) \
		$(call set,from_checkpoint,FROM) $(WORDS)

plan:  ## parameters, FLOPs, hours, disk and memory of a training that is not started: MODEL=llamagen-xl HEAD=masc GPUS=8
	$(PYTHON) scripts/plan.py $(call set,model,MODEL) $(call set,head,HEAD) $(call set,loss,LOSS) $(call set,recipe,RECIPE) $(call set,optim,OPTIM) $(call set,tree,TREE) $(IMAGES) \
		$(call set,tokenizer_name,TOKENIZER) $(CLUSTERS) $(call set,gpus,GPUS) $(call set,nodes,NODES) $(WORDS)

sample:  ## draw samples: RUN=runs/llamagen-tiny/masc/seed0, or RELEASE=c2i_B_256 PRESET=gallery
	$(if $(RELEASE),,$(NEED_RUN))$(LAUNCH) scripts/sample.py $(SUBJECT) $(call set,name,SAMPLES) $(WORDS)

export:  ## a run's weights in LlamaGen's layout: RUN=runs/llamagen-b/flat/seed0
	$(NEED_RUN)exec $(PYTHON) scripts/export.py $(call set,run,RUN) $(WORDS)

parameters:  ## exact parameter counts by size and vocabulary
	exec $(PYTHON) scripts/parameters.py $(WORDS)

weights:  ## download and verify checkpoints, extractor weights, references: NAME=c2i_B_256,adm-imagenet256 (no NAME: list them)
	exec $(PYTHON) scripts/weights.py $(call each,names,NAME) $(WORDS)

text-features:  ## FLAN-T5-XL features of captions: CAPTIONS=captions_val2014.json GPUS=1
	$(if $(CAPTIONS),,$(error say which captions: make $@ CAPTIONS=captions_val2014.json))$(LAUNCH) scripts/text_features.py $(call set,captions,CAPTIONS) $(WORDS)

eval-tokenizer:  ## PSNR, SSIM, LPIPS, rFID, codebook usage, semantic replacement: TOKENIZER=emoji32 K=512
	exec $(PYTHON) scripts/eval_tokenizer.py $(call set,tokenizer,TOKENIZER) $(IMAGES) $(call each,num_clusters,K) $(WORDS)

reference:  ## statistics of an image source in ADM's layout, for FID: DATA=imagenet256 GPUS=8 DATA_PATH=/data/ILSVRC
	$(LAUNCH) scripts/reference.py $(IMAGES) $(WORDS)

eval-fid:  ## FID, sFID, IS, precision, recall: RUN=..., RELEASE=c2i_B_256 or SAMPLES=folder|npz; PROTOCOL=adm,paper GPUS=8
	$(LAUNCH) scripts/eval_fid.py $(MEASURED) $(PROTOCOLS) $(WORDS)

coco-captions:  ## choose 30,000 captions of val2014, one for each image: DATA_PATH=/data/coco ARGS=caption_seed=0
	exec $(PYTHON) scripts/coco_captions.py $(call set,coco,DATA_PATH) $(WORDS)

eval-coco: PICTURES = $(if $(IS_DEFAULT),$(error say what to measure: RUN=runs/..., RELEASE=t2i_XL_stage1_256, or SAMPLES=folder or .npz),$(call set,samples,SAMPLES))
eval-coco:  ## FID, IS, CLIP score on COCO-30k: RUN=..., RELEASE=t2i_XL_stage1_256 or SAMPLES=folder|npz; DATA_PATH=/data/coco
	$(LAUNCH) scripts/eval_coco.py $(if $(RUN)$(RELEASE),$(SUBJECT) $(if $(IS_DEFAULT),,$(call set,samples,SAMPLES)),$(PICTURES)) $(call set,coco,DATA_PATH) $(WORDS)

eval-replacement:  ## the semantic replacement test alone: TOKENIZER=emoji32 K=512,256 ARGS=+tree@trees.ward=ward
	exec $(PYTHON) scripts/eval_tokenizer.py reconstruction=false $(call set,tokenizer,TOKENIZER) $(IMAGES) $(call each,num_clusters,K) $(WORDS)

eval-lite:  ## likelihood, FD-lite0, IS-lite0, precision, recall: RUN=... SAMPLES=default
	$(NEED_RUN)exec $(PYTHON) scripts/eval_lite.py $(call set,run,RUN) $(call each,samples,SAMPLES) $(WORDS)

eval-text:  ## whether a text run knows captions from one another: likelihood under other captions, retrieval: RUN=...
	$(NEED_RUN)exec $(PYTHON) scripts/eval_text.py $(call set,run,RUN) $(WORDS)

doctor:  ## probable causes of wrong results: RUN=runs/llamagen-b/flat/seed0, or RESULTS=.../default-adm.json
	$(if $(RESULTS),,$(NEED_RUN))exec $(PYTHON) scripts/doctor.py $(if $(RESULTS),$(call set,results,RESULTS),$(call set,run,RUN)) $(WORDS)

report:  ## one page with all runs and the published results: RUNS=runs ARGS="results=[FILE] metrics=[FID]"
	exec $(PYTHON) scripts/report.py $(call set,runs,RUNS) $(WORDS)

dashboard:  ## one page with every curve of all runs, to hover, zoom and choose: RUNS=runs ARGS=wandb=true
	exec $(PYTHON) scripts/dashboard.py $(call set,runs,RUNS) $(WORDS)

sweep:  ## the learning-rate grid behind configs/tuned
	$(BENCH) benchmarks/sweep.py $(ARGS)

bench-tree:  ## time and memory of the tree against fastcluster, SciPy, scikit-learn and the O(N^3) loop
	$(BENCH) benchmarks/tree.py $(ARGS)

bench-data:  ## speed of loading packed codes against one .npy file per image: ARGS="--llamagen /path/to/LlamaGen"
	$(BENCH) benchmarks/data.py $(ARGS)

bench-heads:  ## memory and time of each head's loss, and milliseconds of a sampling step, against the flat head
	$(BENCH) benchmarks/heads.py $(ARGS)

bench-losses:  ## memory and time of each loss against the flat head's cross-entropy
	$(BENCH) benchmarks/losses.py $(ARGS)

bench-read:  ## time to open sound artefacts, against reading the same bytes without checks
	$(BENCH) benchmarks/reading.py $(ARGS)

bench-tokenizers:  ## speed of VQ-16 against LlamaGen's class: ARGS="--llamagen /path/to/LlamaGen"
	$(BENCH) benchmarks/vq16.py $(ARGS)

bench-eval:  ## the evaluation against SciPy's matrix square root and torch-fidelity: ARGS="--images 2000"
	$(BENCH) benchmarks/evaluation.py $(ARGS)

bench-sample:  ## images per second against the released decoding loop
	$(BENCH) benchmarks/sampling.py $(ARGS)

bench-warm:  ## cold against warm runs on the embedded data: first loss, steps to the flat run's likelihood
	$(BENCH) benchmarks/warm.py $(ARGS)

bench-small-tokenizer:  ## MASC's clusters against a tokenizer with as many codes, on pixels: reconstructions and samples
	$(BENCH) benchmarks/small_tokenizer.py $(ARGS)

bench-train:  ## tokens a second, memory and MFU of training against the released recipe: ARGS="--layers 3"
	$(BENCH) benchmarks/training.py $(ARGS)

bench:  ## speed against LlamaGen's own code: ARGS="--llamagen /path/to/LlamaGen"
	$(BENCH) benchmarks/speed.py $(ARGS)

test:  ## the default tests, with the ten slowest: CPU, no network, about five minutes on two cores
	$(PYTHON) -m pytest -q -n 2 --dist loadfile --durations=10 $(ARGS)

test-all:  ## the slow tests as well: real sizes, compiled steps, other libraries live, several processes
	$(PYTHON) -m pytest -q -m "not gpu and not weights" $(ARGS)

lint:  ## ruff: rules and format
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

format:  ## rewrite in ruff's format
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

clean:  ## delete artifacts/ (also the tokenizers trained here), runs/ and report/
	rm -rf artifacts runs report wandb
