"""Measurements of a Problem: plain functions, each registered with its oracle and its source."""

from theorylab.instruments import attribution as attribution
from theorylab.instruments import bounds as bounds
from theorylab.instruments import certify as certify
from theorylab.instruments import clipping as clipping
from theorylab.instruments import conv_spectrum as conv_spectrum
from theorylab.instruments import curvature as curvature
from theorylab.instruments import effective as effective
from theorylab.instruments import effective_rank as effective_rank
from theorylab.instruments import equivariance as equivariance
from theorylab.instruments import fisher as fisher
from theorylab.instruments import flatness as flatness
from theorylab.instruments import gradient_noise as gradient_noise
from theorylab.instruments import invariances as invariances
from theorylab.instruments import jacobian as jacobian
from theorylab.instruments import kernel_learning as kernel_learning
from theorylab.instruments import kernels as kernels
from theorylab.instruments import kfac as kfac
from theorylab.instruments import landscape as landscape
from theorylab.instruments import margin_geometry as margin_geometry
from theorylab.instruments import noise_scale as noise_scale
from theorylab.instruments import norms as norms
from theorylab.instruments import occam as occam
from theorylab.instruments import rows as rows
from theorylab.instruments import signal as signal
from theorylab.instruments import tracin as tracin
from theorylab.instruments import trak as trak
