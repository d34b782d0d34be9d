# lme4 or ordinal on a table: Rscript rivals.R lmer|glmer|glmer0|clmm FACTOR...
# Then a command a line: "read PATH", "fit". An answer is lines "name,value", and "end".

arguments <- commandArgs(trailingOnly = TRUE)
how <- arguments[1]
factors <- arguments[-1]
suppressPackageStartupMessages(if (how == "clmm") library(ordinal) else library(lme4))
formula <- as.formula(paste("y ~ x +", paste0("(1 | ", factors, ")", collapse = " + ")))

say <- function(name, value) cat(sprintf("%s,%.15g\n", name, value), sep = "")
end <- function() {
  cat("end\n")
  flush(stdout())
}
renamed <- function(names) sub("(Intercept)", "Intercept", names, fixed = TRUE)

end()
commands <- file("stdin")
open(commands)
while (length(line <- readLines(commands, n = 1)) > 0) {
  if (startsWith(line, "read ")) {
    data <- read.csv(substring(line, 6))
    for (name in factors) data[[name]] <- factor(data[[name]])
    if (how == "clmm") data$y <- factor(data$y, ordered = TRUE)
  } else {
    seconds <- system.time(
      fit <- switch(how,
        # ML, as the others maximise; REML is lme4's default.
        lmer = lmer(formula, data = data, REML = FALSE),
        glmer = glmer(formula, data = data, family = binomial),
        glmer0 = glmer(formula, data = data, family = binomial, nAGQ = 0),
        clmm = clmm(formula, data = data))
    )[["elapsed"]]
    if (how == "clmm") {
      fixed <- c(setNames(fit$alpha, paste0("threshold(", names(fit$alpha), ")")), fit$beta)
      sds <- sapply(VarCorr(fit), function(block) attr(block, "stddev")[[1]])
      converged <- fit$optRes$convergence == 0
    } else {
      fixed <- fixef(fit)
      spread <- as.data.frame(VarCorr(fit))
      sds <- setNames(spread$sdcor, ifelse(spread$grp == "Residual", "residual", spread$grp))
      # What it would warn of: the optimiser's own word, and the gradient at the end.
      complaints <- grepl("failed to converge", unlist(fit@optinfo$conv$lme4$messages))
      converged <- fit@optinfo$conv$opt == 0 && !any(complaints)
    }
    say(renamed(names(fixed)), unname(fixed))
    say(paste0("sd(", names(sds), ")"), unname(sds))
    say(c("seconds", "converged"), c(seconds, as.numeric(converged)))
  }
  end()
}
