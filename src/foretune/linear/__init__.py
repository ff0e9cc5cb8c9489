"""Linearised fine-tunes: solved in closed form, or simulated with the real optimiser."""

from foretune.linear.closed_form import Curve as Curve
from foretune.linear.closed_form import Fit as Fit
from foretune.linear.closed_form import Modes as Modes
from foretune.linear.closed_form import Ridge as Ridge
from foretune.linear.closed_form import best_strength as best_strength
from foretune.linear.closed_form import gradient_descent as gradient_descent
from foretune.linear.closed_form import gradient_flow as gradient_flow
from foretune.linear.closed_form import ridge as ridge
from foretune.linear.closed_form import sum_strength as sum_strength
from foretune.linear.forward_mode import replaced as replaced
from foretune.linear.growth import Growth as Growth
from foretune.linear.linearise import Linearised as Linearised
from foretune.linear.linearise import linearise as linearise
from foretune.linear.lockstep import Lockstep as Lockstep
from foretune.linear.logistic import LogisticFit as LogisticFit
from foretune.linear.logistic import logistic as logistic
from foretune.linear.moments import Moments as Moments
from foretune.linear.moments import outputs_at as outputs_at
from foretune.linear.start import START_FILE as START_FILE
from foretune.linear.start import load_start as load_start
from foretune.linear.tangent_model import TangentModel as TangentModel
from foretune.linear.tangent_model import mean_loss as mean_loss
from foretune.linear.weights import Factors as Factors
from foretune.linear.weights import Weights as Weights
from foretune.linear.weights import change_norms as change_norms
